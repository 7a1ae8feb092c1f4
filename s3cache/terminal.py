"""What a person at a terminal sees: errors, sizes, requests, and how far a prefetch has come."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from s3cache.errors import S3CacheError, SettingsError

if TYPE_CHECKING:
    from s3cache.agent.protocol import ProgressIs
    from s3cache.ledger import Ledger
    from s3cache.prefetch import Progress

PATIENCE_SECONDS = 0.5
"""A prefetch that is over by then shows no bar."""
_STEP_SECONDS = 0.1


@contextmanager
def said_errors() -> Iterator[None]:
    """End the command with what an error says: with 2 when it is of a setting, else with 1."""
    try:
        yield
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except S3CacheError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def bar(progress: "Callable[[], Progress | ProgressIs | None]") -> Iterator[None]:
    """Show a prefetch while this context lasts, until it is over or None, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    is_left = threading.Event()
    # `progress` may wait for an answer; what runs in the context waits for nothing but signals, which are
    # not for this thread.
    thread = threading.Thread(target=_draw, args=(progress, is_left))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        is_left.set()
        thread.join()


def _draw(progress: "Callable[[], Progress | ProgressIs | None]", is_left: threading.Event) -> None:
    seconds = PATIENCE_SECONDS
    while not is_left.wait(seconds):
        now = progress()
        if now is None or now.is_over:
            return
        if now.of:
            break
        seconds = _STEP_SECONDS
    else:
        return
    with click.progressbar(length=now.of, label=f"s3cache: {size(now.of)}", file=sys.stderr) as drawn:
        while now:
            drawn.update(now.bytes - drawn.pos)
            if now.is_over or is_left.is_set():
                break
            is_left.wait(_STEP_SECONDS)
            now = progress()


def requests(ledger: "Ledger") -> str:
    """Return how many requests were made, on one line."""
    of = ledger.requests
    return f"{of.LIST} LIST, {of.GET} GET, {of.PUT} PUT, {of.DELETE} DELETE"


def size(count: int) -> str:
    """Return a number of bytes as people write it."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
