"""What every adapter stands on: finding a hook, and keeping our mistakes out of the job."""

import functools
import logging
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any, ParamSpec, TypeVar

import wrapt

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
_OF_CACHED_FUNCTIONS = ("cache_clear", "cache_info", "cache_parameters")
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
    """Put `wrapper` around the function at `path`, as "Class.method". Raises HookMissing if it is absent.

    What stands there then is a plain function: PyTorch copies and pickles objects that hold its methods.
    """
    require(module, path)
    parent, name, original = wrapt.resolve_path(module, path)
    if isinstance(original, staticmethod):
        setattr(parent, name, staticmethod(_around_function(original.__func__, wrapper)))
    elif isinstance(original, classmethod):
        setattr(parent, name, classmethod(_around_method(original.__func__, wrapper)))
    elif isinstance(parent, type):
        setattr(parent, name, _around_method(original, wrapper))
    else:
        setattr(parent, name, _around_function(original, wrapper))


def _around_function(function: Callable[..., Any], wrapper: Wrapper) -> Callable[..., Any]:
    @functools.wraps(function)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return wrapper(function, None, args, kwargs)

    for name in _OF_CACHED_FUNCTIONS:
        if hasattr(function, name):
            setattr(replacement, name, getattr(function, name))
    return replacement


def _around_method(function: Any, wrapper: Wrapper) -> Callable[..., Any]:
    @functools.wraps(function)
    def replacement(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return wrapper(MethodType(function, self), self, args, kwargs)

    return replacement


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
            # An OSError's repr leaves out of which file it is.
            cause = f"{type(error).__name__}: {error}"
            logger.log(level, "%s failed; the job goes on without it: %s", name, cause)
            level = logging.DEBUG
            return None

    return run
