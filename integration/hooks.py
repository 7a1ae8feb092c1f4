"""What every adapter stands on: finding a hook, and keeping our mistakes out of the job."""

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import wrapt

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


class HookMissing(Exception):
    """Raised when a module lacks what an adapter needs of it."""


def require(module: ModuleType, *paths: str) -> None:
    """Check that the module has these attributes. Raises HookMissing, which names the absent one."""
    for path in paths:
        try:
            wrapt.resolve_path(module, path)
        except AttributeError as error:
            raise HookMissing(f"{module.__name__}.{path}") from error


def wrap(module: ModuleType, path: str, wrapper: Wrapper) -> None:
    """Put `wrapper` around the function at `path`, as "Class.method". Raises HookMissing if absent."""
    require(module, path)
    wrapt.wrap_function_wrapper(module, path, wrapper)


def guarded(function: Callable[P, R]) -> Callable[P, R | None]:
    """Make `function` return None instead of raising; the first time it says so as a warning."""
    level = logging.WARNING

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R | None:
        nonlocal level
        try:
            return function(*args, **kwargs)
        except Exception as error:
            name = f"{function.__module__}.{function.__qualname__}"
            logger.log(level, "%s failed; the job goes on without it: %r", name, error)
            level = logging.DEBUG
            return None

    return run
