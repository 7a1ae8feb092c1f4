"""What people do today so that a fresh machine does not compile: starts to measure beside s3cache's.

with rival_starts(root, server, wire.endpoint, "bucket", Network(), print) as rivals:
    for rival in rivals:
        rival.record()
        seconds = rival.start()
"""

import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.machine import START_SECONDS, TRAIN, Machine, StartError, Training
from benchmarks.network import Network, network
from benchmarks.rivals import pack, unpack
from tests.servers import STOP_SECONDS, Server, ServerError, free_ports

CACHES = ("inductor", "triton")
REDIS_SECONDS = 30.0
REDIS_ABSENT = "no Redis: apt-get install redis-server; pip install redis"

# All three are given the bucket, the name of an object, and a file.
UPLOAD = """
import sys
import boto3
bucket, name, file = sys.argv[1:]
boto3.client("s3").upload_file(file, bucket, name)
"""

DOWNLOAD = """
import sys
import boto3
bucket, name, file = sys.argv[1:]
boto3.client("s3").download_file(bucket, name, file)
"""

TRAIN_AND_SAVE = """
import io, runpy, sys
import boto3, torch
bucket, name, file = sys.argv[1:]
runpy.run_path(file, run_name="__main__")
artifacts, _ = torch.compiler.save_cache_artifacts()
boto3.client("s3").upload_fileobj(io.BytesIO(artifacts), bucket, name)
"""

LOAD_AND_TRAIN = """
import io, runpy, sys
import boto3, torch
bucket, name, file = sys.argv[1:]
artifacts = io.BytesIO()
boto3.client("s3").download_fileobj(bucket, name, artifacts)
torch.compiler.load_cache_artifacts(artifacts.getvalue())
runpy.run_path(file, run_name="__main__")
"""


class RivalStart(ABC):
    """One way to a warm start. Every machine stands at `root`: where paths differ, some find nothing."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._root = root

    @abstractmethod
    def record(self) -> None:
        """Train on a fresh machine and leave behind what the next ones take."""

    @abstractmethod
    def start(self) -> float:
        """Train on a fresh machine; seconds from the first spawn to the end of the first step."""

    def _fresh_machine(self) -> Machine:
        if self._root.exists():
            shutil.rmtree(self._root)
        return Machine(self._root)


class RedisStart(RivalStart):
    """PyTorch's own remote cache, in a Redis; recorded straight there, read through a network."""

    def __init__(self, root: Path, redis: str, endpoint: str) -> None:
        super().__init__("PyTorch's Redis cache", root)
        self._redis = redis
        self._endpoint = endpoint

    def record(self) -> None:
        self._fresh_machine().train(_redis_settings(self._redis))

    def start(self) -> float:
        return self._fresh_machine().train(_redis_settings(self._endpoint)).to_first_step


class BucketStart(RivalStart):
    """One object in a bucket; recorded straight there, read through a network."""

    def __init__(self, name: str, root: Path, server: Server, endpoint: str, bucket: str) -> None:
        super().__init__(name, root)
        self._bucket = bucket
        self._direct = server.environment()
        self._through_network = {**self._direct, "AWS_ENDPOINT_URL_S3": endpoint}

    def _run(self, script: str, file: Path, machine: Machine, settings: Mapping[str, str]) -> str:
        return _python(["-c", script, self._bucket, self.name, str(file)], machine, settings)


class ArtifactsStart(BucketStart):
    """`torch.compiler.save_cache_artifacts`, and `load_cache_artifacts` before the training."""

    def __init__(self, root: Path, server: Server, endpoint: str, bucket: str) -> None:
        super().__init__("save_cache_artifacts", root, server, endpoint, bucket)

    def record(self) -> None:
        self._run(TRAIN_AND_SAVE, TRAIN, self._fresh_machine(), self._direct)

    def start(self) -> float:
        machine = self._fresh_machine()
        spawned = time.time()
        output = self._run(LOAD_AND_TRAIN, TRAIN, machine, self._through_network)
        return msgspec.json.decode(output.splitlines()[-1], type=Training).first_step_ended - spawned


class TarStart(BucketStart):
    """The compilers' cache folders as one tar.zst; what lies in the temporary folder stays behind."""

    def __init__(self, root: Path, server: Server, endpoint: str, bucket: str) -> None:
        super().__init__("tar.zst of the cache folders", root, server, endpoint, bucket)

    def record(self) -> None:
        machine = self._fresh_machine()
        machine.train()
        archive = machine.root / "tmp" / "caches.tar.zst"
        pack(machine.root, archive, CACHES)
        self._run(UPLOAD, archive, machine, self._direct)

    def start(self) -> float:
        machine = self._fresh_machine()
        archive = machine.root / "tmp" / "caches.tar.zst"
        spawned = time.time()
        self._run(DOWNLOAD, archive, machine, self._through_network)
        unpack(archive, machine.root)
        return machine.train().training.first_step_ended - spawned


@contextmanager
def rival_starts(
    root: Path, server: Server, endpoint: str, bucket: str, between: Network, say: Callable[[str], object]
) -> Iterator[list[RivalStart]]:
    """Yield the ways that can be tried here; say what is missing for one that cannot.

    `endpoint` is that of the network before `server`; Redis gets one like it, `between`.
    """
    rivals: list[RivalStart] = [
        ArtifactsStart(root, server, endpoint, bucket),
        TarStart(root, server, endpoint, bucket),
    ]
    with ExitStack() as stack:
        if shutil.which("redis-server") and find_spec("redis"):
            redis = stack.enter_context(_redis_server())
            wire = stack.enter_context(network(redis, between))
            rivals.append(RedisStart(root, redis, wire.endpoint))
        else:
            say(REDIS_ABSENT)
        yield rivals


@contextmanager
def _redis_server() -> Iterator[str]:
    (port,) = free_ports(1)
    setpriv = shutil.which("setpriv")
    command = [
        *([setpriv, "--pdeathsig", "KILL"] if setpriv else []),
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
    ]
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder) as redis,
    ):
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            redis.kill()
            redis.wait(STOP_SECONDS)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + REDIS_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port)):
                return
        except OSError:
            time.sleep(0.05)
    raise ServerError(f"Redis did not answer in {REDIS_SECONDS:.0f} s")


def _redis_settings(endpoint: str) -> dict[str, str]:
    host, _, port = endpoint.removeprefix("http://").partition(":")
    return {
        "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE": "1",
        "TORCHINDUCTOR_REDIS_HOST": host,
        "TORCHINDUCTOR_REDIS_PORT": port,
    }


def _python(arguments: Sequence[str], machine: Machine, settings: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=machine.root / "home",
        env=machine.environment(settings),
        timeout=START_SECONDS,
    )
    if done.returncode != 0:
        said = "\n".join(done.stdout.splitlines()[-20:])
        raise StartError(f"a script ended with status {done.returncode}; it said:\n{said}")
    return done.stdout
