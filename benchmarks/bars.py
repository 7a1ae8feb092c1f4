"""A number beside the bar it is held to: how it is said, and where and when it was measured."""

import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True)
class Number:
    """One line of the table: what was measured, its bar, what came out, and what stands beside it.

    The bar is what may be reached at most, or has to be reached at least.
    """

    what: str
    bar: float
    measured: float
    unit: str = ""
    note: str = ""
    beside: dict[str, float] = field(default_factory=dict)
    is_floor: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the number is on the right side of its bar."""
        return self.measured >= self.bar if self.is_floor else self.measured <= self.bar


def table(numbers: Iterable[Number]) -> Table:
    """Return the numbers as a table: a tick where the bar is met."""
    rows = Table()
    rows.add_column("what")
    rows.add_column("bar", justify="right")
    rows.add_column("measured", justify="right")
    rows.add_column("")
    for number in numbers:
        mark = "[green]✓[/]" if number.is_met else "[red]✗[/]"
        bound = "≥" if number.is_floor else "≤"
        measured = f"{number.measured:.4g}{number.unit} {mark}"
        beside = [f"{name}: {value:.3g}" for name, value in number.beside.items()]
        note = "; ".join(filter(None, [number.note, *beside]))
        rows.add_row(number.what, f"{bound} {number.bar:g}{number.unit}", measured, note)
    return rows


def turned(items: Sequence[str], turn: int) -> list[str]:
    """Return the items in an order that alternates, so that no one is always first."""
    return list(items if turn % 2 == 0 else reversed(items))


def setting(packages: Iterable[str]) -> str:
    """Return when, where and with what the numbers were measured."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{time.strftime('%Y-%m-%d')}, {_cpu()}, Python {platform.python_version()}, {versions}"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.machine()
