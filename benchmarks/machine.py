"""One machine as a job sees it, and one start of the training script on it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

S3CACHE = Path(sys.executable).with_name("s3cache")
TRAIN = Path(__file__).with_name("train.py")
WORK = Path(__file__).parent
"""Where each machine starts its jobs, as those of one image do: cuDNN writes it into what it generates."""
START_SECONDS = 300.0
FLUSH_SECONDS = 90.0
# What would carry state, or another cache, from the machine below into a start.
FOREIGN = ("AWS_", "S3CACHE_", "TORCH", "TRITON", "XDG_", "PYTHON")


class StartError(RuntimeError):
    """A start did not end well, or its cache did not come to rest; the message says which."""


class Traffic(msgspec.Struct, frozen=True):
    """What the cache did for one namespace."""

    bucket_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    puts: int = 0
    bytes_down: int = 0
    bytes_up: int = 0


class Report(msgspec.Struct, frozen=True):
    """The part of s3cache's report that is shown here."""

    namespaces: dict[str, Traffic]
    requests: dict[str, int]
    seconds: dict[str, float]
    warnings: list[str]

    def __str__(self) -> str:
        """Return it on one line."""
        asked = [f"{count} {kind}" for kind, count in self.requests.items() if count]
        found = [
            f"{name} {each.bucket_hits + each.disk_hits} hits {each.misses} misses {each.puts} puts"
            for name, each in self.namespaces.items()
        ]
        took = [f"{what} {seconds:.2f} s" for what, seconds in self.seconds.items()]
        return "; ".join(", ".join(part) for part in (asked, found, took))


class Training(msgspec.Struct, frozen=True):
    """What the training script prints."""

    first_step_seconds: float
    first_step_ended: float
    losses: list[str]
    inductor: dict[str, int]
    aot_autograd: dict[str, int]


@dataclass(frozen=True)
class Ended:
    """How a command went: when it was spawned, the seconds it took, the last JSON it printed."""

    spawned: float
    to_exit: float
    said: str
    report: Report | None


@dataclass(frozen=True)
class Start:
    """One start of the training script: seconds from its spawn, and what it said at the end."""

    to_first_step: float
    to_exit: float
    training: Training
    report: Report | None


class Machine:
    """A home, a temporary folder, a disk tier and compiler caches that no other machine has."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "disk"
        self._starts = 0
        for name in ("home", "tmp", "disk", "inductor", "triton"):
            (root / name).mkdir(parents=True)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a job on this machine; `extra` is what its user sets."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        return {
            **kept,
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "inductor"),
            "TRITON_CACHE_DIR": str(self.root / "triton"),
            "S3CACHE_DIR": str(self.cache),
            **(extra or {}),
        }

    def train(
        self,
        extra: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
        script: Path = TRAIN,
        within: float = START_SECONDS,
    ) -> Start:
        """Start a training script and wait until it and the cache behind it are done.

        `under` is what the script's command line is given to, as `s3cache run --`.
        Raises StartError when the job fails, takes longer than `within` or its uploads do not end.
        """
        ended = self.execute([*under, sys.executable, str(script)], extra, within)
        training = msgspec.json.decode(ended.said, type=Training)
        return Start(training.first_step_ended - ended.spawned, ended.to_exit, training, ended.report)

    def execute(
        self,
        command: Sequence[str],
        extra: Mapping[str, str] | None = None,
        within: float = START_SECONDS,
    ) -> Ended:
        """Run a command that prints a line of JSON, and wait for it as `train` does."""
        self._starts += 1
        report = self.root / f"report-{self._starts}.json"
        output = self.root / f"output-{self._starts}"
        environment = self.environment(extra) | {"S3CACHE_REPORT": str(report)}
        with output.open("wb") as out:
            spawned, began = time.time(), time.perf_counter()
            # A session of its own, so that PyTorch's compile workers can be ended with it.
            job = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=WORK,
                env=environment,
                start_new_session=True,
            )
            try:
                status = job.wait(within)
            except subprocess.TimeoutExpired:
                raise StartError(f"a start took more than {within:.0f} s") from None
            finally:
                if job.returncode is None:
                    os.killpg(job.pid, signal.SIGKILL)
                    job.wait()
            to_exit = time.perf_counter() - began
        lines = output.read_text(errors="replace").splitlines()
        results = [line for line in lines if line.startswith("{")]
        if status != 0 or not results:
            said = "\n".join(lines[-20:])
            raise StartError(f"a start ended with status {status}; it said:\n{said}")
        self.wait_until_idle()
        return Ended(spawned, to_exit, results[-1], _report(report))

    def wait_until_idle(self) -> None:
        """Wait until every agent of this machine has sent what was spooled and is gone.

        Raises StartError when that takes too long.
        """
        deadline = time.monotonic() + FLUSH_SECONDS
        for lock in self.cache.glob("agents/*/lock"):
            try:
                with FileLock(lock, timeout=max(0.0, deadline - time.monotonic())):
                    pass
            except Timeout:
                raise StartError(
                    f"the agent still held {lock} {FLUSH_SECONDS:.0f} s after its job ended"
                ) from None


def _report(path: Path) -> Report | None:
    return msgspec.json.decode(path.read_bytes(), type=Report) if path.exists() else None
