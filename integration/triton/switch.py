"""Whether Triton's kernels are ours to keep at this moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from s3cache import client
from s3cache.client import Client

_travels_in_a_graph: ContextVar[bool] = ContextVar("s3cache_travels_in_a_graph", default=False)


def active_client() -> Client | None:
    """Return this process's client; None without one, or while a graph carries what is compiled."""
    return None if _travels_in_a_graph.get() else client.current()


@contextmanager
def carried_by_a_graph() -> Iterator[None]:
    """Keep nothing in this context by itself: PyTorch bundles it with its graph."""
    token = _travels_in_a_graph.set(True)
    try:
        yield
    finally:
        _travels_in_a_graph.reset(token)
