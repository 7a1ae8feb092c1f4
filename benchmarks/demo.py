"""The main job, seen from outside: one training script, four starts, a table and a verdict.

no cache · recording into a bucket · a fresh machine, warm from the bucket · that machine, hot.
"""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.compilers import LOG_VARIABLE, executions, write_shims
from benchmarks.machine import Machine, Report, Start, StartError, Training
from tests.servers import ServerError, seaweedfs

BUCKET = "s3cache-demo"
URL = f"s3://{BUCKET}/demo"
GRAPH_MISSES = (("inductor", "fxgraph_cache_miss"), ("aot_autograd", "autograd_cache_miss"))
GRAPH_HITS = (("inductor", "fxgraph_cache_hit"), ("aot_autograd", "autograd_cache_hit"))
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One start and the number of compilers that it executed."""

    name: str
    start: Start
    compilers: int


class Demo:
    """Runs starts on machines under one folder, with every compiler counted."""

    def __init__(self, root: Path, console: Console) -> None:
        self._root = root
        self._console = console
        self._shims = root / "compilers"
        self._began = 0
        write_shims(self._shims)

    def machine(self, name: str) -> Machine:
        """A machine that has never run anything."""
        return Machine(self._root / name)

    def start(self, name: str, machine: Machine, settings: dict[str, str]) -> Row:
        """Run the training script once; raises StartError when it fails."""
        self._began += 1
        log = self._root / f"compilers-{self._began}"
        path = machine.environment()["PATH"]
        extra = {"PATH": f"{self._shims}:{path}", LOG_VARIABLE: str(log)}
        with self.step(name):
            start = machine.train(settings | extra)
        return Row(name, start, executions(log).total())

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Show that something is under way, and afterwards how long it took."""
        silent = not self._console.is_terminal
        if silent:
            self._console.print(f"… {what}")
        began = time.perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=silent) as progress:
            progress.add_task(what, total=None)
            yield
        self._console.print(f"✓ {what}: {time.perf_counter() - began:.1f} s")


def main() -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if shutil.which("g++") is None:
        console.print("The demo compiles with g++, which is not installed.", style="red")
        return 1
    try:
        with TemporaryDirectory(prefix="s3cache-demo-", ignore_cleanup_errors=True) as folder:
            rows, settling = _run(Demo(Path(folder), console))
    except (ServerError, StartError) as error:
        console.print(f"The demo could not be run: {error}", style="red", markup=False)
        return 1
    console.print()
    console.print(_table(rows))
    console.print(
        "The fresh machine never needed PyTorch's precompiled header, which stock PyTorch builds"
        f" when it is not there: before the last start, one start that is not counted"
        f" ({settling.start.to_first_step:.1f} s, {settling.compilers} compiler executions) let it"
        " do so. The last column is thus a stock PyTorch with everything it wants.",
        style="dim",
    )
    problems = _problems(rows)
    for problem in problems:
        console.print(f"✗ {problem}", style="red", markup=False)
    if not problems:
        _none, _recording, fresh, hot = rows
        console.print(
            "✓ The fresh machine missed no graph, executed no compiler and computed the same"
            f" losses; its first step came {fresh.start.to_first_step:.1f} s after its spawn"
            f" ({hot.start.to_first_step:.1f} s on a hot machine without s3cache).",
            style="green",
        )
    return 1 if problems else 0


def _run(demo: Demo) -> tuple[list[Row], Row]:
    with ExitStack() as stack:
        with demo.step("an S3 server"):
            server = stack.enter_context(seaweedfs())
            server.make_bucket(BUCKET)
        cached = {"S3CACHE_URL": URL, **server.environment()}
        fresh = demo.machine("fresh")
        rows = [
            demo.start("no cache", demo.machine("stock"), {}),
            demo.start("recording", demo.machine("recorder"), cached),
            demo.start("fresh machine", fresh, cached),
        ]
        settling = demo.start("settling, not counted", fresh, {})
        rows.append(demo.start("hot, s3cache off", fresh, {}))
    return rows, settling


def _problems(rows: Sequence[Row]) -> list[str]:
    none, recording, fresh, hot = rows
    problems = []
    for row in (recording, fresh):
        if row.start.report is None:
            problems.append(f"{row.name}: s3cache wrote no report; is it installed here?")
    missed = _counted(fresh.start.training, GRAPH_MISSES)
    if missed:
        problems.append(f"The fresh machine missed {missed} graphs by PyTorch's own counters.")
    if not _counted(fresh.start.training, GRAPH_HITS):
        problems.append("The fresh machine hit no graph at all by PyTorch's own counters.")
    if fresh.compilers:
        problems.append(f"The fresh machine executed a compiler {fresh.compilers} times.")
    problems += [
        f"{row.name}: other losses than without a cache:"
        f" {row.start.training.losses}, not {none.start.training.losses}."
        for row in (recording, fresh, hot)
        if row.start.training.losses != none.start.training.losses
    ]
    for row in rows:
        if row.start.report is not None:
            problems += [f"{row.name}: {warning}" for warning in row.start.report.warnings]
    return problems


def _counted(training: Training, counters: Sequence[tuple[str, str]]) -> int:
    groups = {"inductor": training.inductor, "aot_autograd": training.aot_autograd}
    return sum(groups[group].get(name, 0) for group, name in counters)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="One training script, four starts")
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right")

    def line(what: str, cell: Callable[[Row], str], *, end: bool = False) -> None:
        table.add_row(what, *(cell(row) for row in rows), end_section=end)

    def reported(what: str, cell: Callable[[Report], str], *, end: bool = False) -> None:
        cells = (row.start.report for row in rows)
        table.add_row(what, *(cell(r) if r else NOTHING for r in cells), end_section=end)

    line("spawn to first step", lambda row: f"{row.start.to_first_step:.2f} s")
    line("first step", lambda row: f"{row.start.training.first_step_seconds:.2f} s")
    reported("waiting for the cache", lambda report: f"{sum(report.seconds.values()):.2f} s")
    line("compiler executions", lambda row: str(row.compilers))
    line("graphs missed / hit", _graphs, end=True)
    reported("requests", _requests)
    reported("bytes down", lambda report: _bytes(t.bytes_down for t in report.namespaces.values()))
    reported("bytes up", lambda r: _bytes(t.bytes_up for t in r.namespaces.values()), end=True)
    reports = [row.start.report for row in rows if row.start.report]
    for namespace in sorted({name for report in reports for name in report.namespaces}):
        reported(namespace, partial(_traffic, namespace))
    table.caption = "by namespace: hits in the bucket + hits on disk, misses"
    return table


def _graphs(row: Row) -> str:
    training = row.start.training
    return f"{_counted(training, GRAPH_MISSES)} / {_counted(training, GRAPH_HITS)}"


def _requests(report: Report) -> str:
    return "\n".join(f"{n} {kind}" for kind, n in report.requests.items() if n) or "0"


def _bytes(counts: Iterable[int]) -> str:
    return f"{sum(counts) / 1e6:.2f} MB"


def _traffic(namespace: str, report: Report) -> str:
    traffic = report.namespaces.get(namespace)
    if traffic is None:
        return NOTHING
    return f"{traffic.bucket_hits} + {traffic.disk_hits}, {traffic.misses}"


if __name__ == "__main__":
    sys.exit(main())
