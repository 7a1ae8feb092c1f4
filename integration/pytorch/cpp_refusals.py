"""Whether a compiler refused what it was given, or could not do its work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import wrap


@dataclass
class Refusals:
    """What was seen while it was watched for."""

    seen: bool = False


_watching = threading.local()


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.cpp_builder`. Raises HookMissing if it is not as expected."""
    wrap(module, "CppBuilder.build", _build)


@contextmanager
def watched() -> Iterator[Refusals]:
    """Watch for refusals in this thread."""
    _watching.refusals = refusals = Refusals()
    try:
        yield refusals
    finally:
        del _watching.refusals


def _build(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        refusals = getattr(_watching, "refusals", None)
        text = str(error)
        if refusals is not None and "error: " in text and "fatal error: " not in text:
            refusals.seen = True
        raise
