"""10,000 tampered objects against a signed bucket: python -m benchmarks.faults.tampering

What is tampered with, and how, is in tests/tampering.py. Exits with 1 when one was served, one crashed a
decoder, or memory grew.
"""

import logging
import resource
import sys
import tempfile
from pathlib import Path

import anyio
import click
from rich.console import Console

from benchmarks.bars import Number, table
from tests.tampering import KINDS, run_all

GROWTH_MIB = 256
"""What the process may grow by; the bombs grow to four times as much."""


@click.command()
@click.option("--objects", default=10_000, show_default=True)
def main(objects: int) -> None:
    """Tamper, and see what a machine that trusts one key makes of it."""
    logging.disable(logging.CRITICAL)
    before = _peak_mib()
    with (
        tempfile.TemporaryDirectory() as folder,
        click.progressbar(length=objects, label="tampering", file=sys.stderr) as bar,
    ):
        wrong = anyio.run(run_all, Path(folder), range(objects), lambda: bar.update(1))
    crashed = [each for each in wrong if "crashed" in each or "nobody caught" in each]
    numbers = [
        Number(f"served, of {objects:,} of {len(KINDS)} kinds", 0, len(wrong) - len(crashed)),
        Number("crashes", 0, len(crashed)),
        Number("memory grew by", GROWTH_MIB, _peak_mib() - before, " MiB"),
    ]
    console = Console()
    console.print(table(numbers))
    for each in wrong[:20]:
        console.print(each)
    sys.exit(not all(number.is_met for number in numbers))


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
