"""What is being saved right now: a recorded artifact is either that, or something found."""

from contextvars import ContextVar
from typing import Any, NamedTuple

from s3cache.integration.hooks import guarded

MEMBER = "content"
_TIMES = ("_time_taken_ns", "forward_time_taken_ns", "backward_time_taken_ns")


class Saving(NamedTuple):
    """A result that was just compiled. PyTorch may set its guards only while it saves it."""

    result: Any

    @property
    def guards(self) -> str:
        """The expression it is valid under; empty if always."""
        return getattr(self.result, "guards_expr", None) or ""

    @property
    def cost_seconds(self) -> float:
        """How long compiling it took."""
        return sum(getattr(self.result, name, None) or 0 for name in _TIMES) / 1e9


current: ContextVar[Saving | None] = ContextVar("s3cache_saving", default=None)


def saves(argument: str, position: int) -> Any:
    """Return a wrapper for a function that saves the result in that argument."""

    @guarded
    def saving(args: Any, kwargs: Any) -> Saving:
        return Saving(kwargs[argument] if argument in kwargs else args[position])

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        token = current.set(saving(args, kwargs))
        try:
            return wrapped(*args, **kwargs)
        finally:
            current.reset(token)

    return wrapper
