"""The bar on a terminal: when it is there, and that it takes nothing from what runs beside it."""

import os
import select
import signal
import threading
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest

from s3cache import terminal
from s3cache.prefetch import Progress

WAIT_SECONDS = 30.0


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a terminal that stderr is."""
    seen, shown = os.openpty()
    monkeypatch.setattr(terminal, "PATIENCE_SECONDS", 0.05)
    with os.fdopen(shown, "w") as stderr:
        monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=stderr))
        yield seen
    os.close(seen)


def text(screen: int) -> str:
    seen = b""
    # What was written to a terminal comes out of it a moment later.
    while select.select([screen], [], [], 0.2)[0]:
        seen += os.read(screen, 100_000)
    return seen.decode()


def test_bar_follows_and_ends_where_the_prefetch_does(screen: int) -> None:
    shown = iter([Progress(0, 0), Progress(0, 4_000_000), Progress(1_000_000, 4_000_000)])
    was_asked = threading.Event()

    def ask() -> Progress:
        try:
            return next(shown)
        except StopIteration:
            was_asked.set()
            return Progress(4_000_000, 4_000_000, is_over=True)

    with terminal.bar(ask):
        assert was_asked.wait(WAIT_SECONDS)
    seen = text(screen)
    assert seen.index("s3cache: 4.0 MB") < seen.index("  0%") < seen.index(" 25%") < seen.index("100%")
    assert seen.endswith("\n")


@pytest.mark.parametrize(
    "progress", [None, Progress(4, 4, True), Progress(0, 0, False), Progress(0, 0, True)]
)
def test_no_bar_where_there_is_nothing_to_show(screen: int, progress: Progress | None) -> None:
    was_asked = threading.Event()

    def ask() -> Progress | None:
        was_asked.set()
        return progress

    with terminal.bar(ask):
        assert was_asked.wait(WAIT_SECONDS)
    assert text(screen) == ""


def test_signals_are_not_for_the_bar(screen: int) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    blocked: list[set[int]] = []
    was_asked = threading.Event()

    def ask() -> None:
        blocked.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        was_asked.set()

    with terminal.bar(ask):
        assert was_asked.wait(WAIT_SECONDS)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert blocked == [set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}]


def test_bar_is_gone_when_what_runs_beside_it_raises(screen: int) -> None:
    was_drawn = threading.Event()
    asked = count()

    def ask() -> Progress:
        # The second time, the first answer is on the screen.
        if next(asked):
            was_drawn.set()
        return Progress(1, 4)

    def run() -> None:
        with terminal.bar(ask):
            assert was_drawn.wait(WAIT_SECONDS)
            raise LookupError

    with pytest.raises(LookupError):
        run()
    seen = text(screen)
    assert " 25%" in seen
    assert seen.endswith("\n")


@pytest.mark.parametrize(
    ("count", "written"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (6_400_000, "6.4 MB"), (2_000_000_000_000, "2000.0 GB")],
)
def test_sizes(count: int, written: str) -> None:
    assert terminal.size(count) == written
