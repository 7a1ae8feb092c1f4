"""What people do today so that a fresh machine does not compile: starts to measure beside s3cache's.

with rival_starts(lab, wire) as rivals:
    seconds = {name: start() for name, start in rivals.items()}
"""

import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.archives import pack, unpack
from benchmarks.lab import BUCKET, Lab
from benchmarks.machine import START_SECONDS, TRAIN, Machine, Start, StartError
from benchmarks.network import Wire, network
from tests.servers import STOP_SECONDS, ServerError, free_ports

CACHES = ("inductor", "triton")
REDIS_SECONDS = 30.0
REDIS_ABSENT = "PyTorch's Redis cache is left out: apt-get install redis-server; pip install redis"

# Given a bucket, the name of an object and a file.
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

# Given a bucket, the name of an object and the training's command line, which is Python and a file.
TRAIN_AND_SAVE = """
import io, runpy, sys
import boto3, torch
bucket, name, _, file = sys.argv[1:]
runpy.run_path(file, run_name="__main__")
artifacts, _ = torch.compiler.save_cache_artifacts()
boto3.client("s3").upload_fileobj(io.BytesIO(artifacts), bucket, name)
"""

LOAD_AND_TRAIN = """
import io, runpy, sys
import boto3, torch
bucket, name, _, file = sys.argv[1:]
artifacts = io.BytesIO()
boto3.client("s3").download_fileobj(bucket, name, artifacts)
torch.compiler.load_cache_artifacts(artifacts.getvalue())
runpy.run_path(file, run_name="__main__")
"""


class RivalStart(ABC):
    """One way to a warm start: recorded straight on its server, read through the network."""

    def __init__(self, name: str, lab: Lab) -> None:
        self.name = name
        self._lab = lab

    @abstractmethod
    def record(self) -> None:
        """Train on a fresh machine and leave behind what the next ones take."""

    @abstractmethod
    def start(self) -> float:
        """Train on a fresh machine; seconds from the first spawn to the end of the first step."""


class RedisStart(RivalStart):
    """PyTorch's own remote cache, in a Redis."""

    def __init__(self, lab: Lab, redis: str, endpoint: str) -> None:
        super().__init__("PyTorch's Redis cache", lab)
        self._redis = redis
        self._endpoint = endpoint

    def record(self) -> None:
        self._lab.machine().train(_redis_settings(self._redis))

    def start(self) -> float:
        return self._lab.machine().train(_redis_settings(self._endpoint)).to_first_step


class BucketStart(RivalStart):
    """One object in the bucket."""

    def __init__(self, name: str, lab: Lab, wire: Wire) -> None:
        super().__init__(name, lab)
        self._direct = lab.server.environment()
        self._through_network = {**self._direct, "AWS_ENDPOINT_URL_S3": wire.endpoint}

    def _command(self, script: str) -> list[str]:
        return [sys.executable, "-c", script, BUCKET, self.name]


class ArtifactsStart(BucketStart):
    """`torch.compiler.save_cache_artifacts`, and `load_cache_artifacts` before a training script."""

    def __init__(
        self,
        lab: Lab,
        wire: Wire,
        script: Path = TRAIN,
        settings: Mapping[str, str] | None = None,
        within: float = START_SECONDS,
    ) -> None:
        super().__init__("save_cache_artifacts", lab, wire)
        self._script = script
        self._settings = dict(settings or {})
        self._within = within

    def record(self) -> None:
        self.record_on(self._lab.machine())

    def record_on(self, machine: Machine, settings: Mapping[str, str] | None = None) -> Start:
        """Record on a machine, whose job has `settings` as well."""
        extra = {**self._settings, **self._direct, **(settings or {})}
        return machine.train(extra, self._command(TRAIN_AND_SAVE), self._script, self._within)

    def start(self) -> float:
        extra = {**self._settings, **self._through_network}
        machine = self._lab.machine()
        started = machine.train(extra, self._command(LOAD_AND_TRAIN), self._script, self._within)
        return started.to_first_step


class TarStart(BucketStart):
    """The compilers' cache folders as one tar.zst; what lies in the temporary folder stays behind."""

    def __init__(self, lab: Lab, wire: Wire) -> None:
        super().__init__("tar.zst of the cache folders", lab, wire)

    def record(self) -> None:
        machine = self._lab.machine()
        machine.train()
        archive = _archive(machine)
        pack(machine.root, archive, CACHES)
        _run([*self._command(UPLOAD), str(archive)], machine, self._direct)

    def start(self) -> float:
        machine = self._lab.machine()
        archive = _archive(machine)
        spawned = time.time()
        _run([*self._command(DOWNLOAD), str(archive)], machine, self._through_network)
        unpack(archive, machine.root)
        return machine.train().training.first_step_ended - spawned


@contextmanager
def rival_starts(lab: Lab, wire: Wire) -> Iterator[dict[str, Callable[[], float]]]:
    """Record each way that can be tried here; yield by name what makes one fresh start, in seconds.

    Redis gets a network like the bucket's. What is missing for it is said.
    """
    rivals: list[RivalStart] = [ArtifactsStart(lab, wire), TarStart(lab, wire)]
    with ExitStack() as stack:
        if shutil.which("redis-server") and find_spec("redis"):
            redis = stack.enter_context(_redis_server())
            redis_wire = stack.enter_context(network(redis, lab.between))
            rivals.append(RedisStart(lab, redis, redis_wire.endpoint))
        else:
            lab.say(REDIS_ABSENT)
        for rival in rivals:
            lab.say(f"recording for {rival.name}")
            rival.record()
        yield {rival.name: rival.start for rival in rivals}


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


def _archive(machine: Machine) -> Path:
    return machine.root / "tmp" / "caches.tar.zst"


def _run(command: list[str], machine: Machine, settings: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=machine.root / "home",
        env=machine.environment(settings),
        timeout=START_SECONDS,
    )
    if done.returncode != 0:
        raise StartError(f"a script ended with status {done.returncode}; it said:\n{done.stdout}")
