"""Whether a compiler refused what it was given, or could not do its work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Refusals:
    """What was seen while it was watched for."""

    seen: bool = False


_watching = threading.local()


@contextmanager
def watched() -> Iterator[Refusals]:
    """Watch for refusals in this thread."""
    _watching.refusals = refusals = Refusals()
    try:
        yield refusals
    finally:
        del _watching.refusals


def note(error: Exception) -> None:
    """Note why a build failed: only an error in what was given to the compiler is a refusal."""
    refusals: Refusals | None = getattr(_watching, "refusals", None)
    text = str(error)
    if refusals is not None and "error: " in text and "fatal error: " not in text:
        refusals.seen = True
