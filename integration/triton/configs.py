"""Triton's launch configurations: what PyTorch notes on one survives that it is copied or pickled."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, wrap

_MARK = "found_by_coordesc"
"""On a configuration that coordinate descent ended at. Without it, PyTorch descends from there again."""


def install(module: ModuleType) -> None:
    """Hook `triton.runtime.autotuner`. Raises HookMissing if it is not as expected."""
    wrap(module, "Config.__setstate__", _setstate)


def _setstate(wrapped: Callable[..., None], config: Any, args: Any, kwargs: Any) -> None:
    wrapped(*args, **kwargs)
    _keep_mark(config, *args, **kwargs)


@guarded
def _keep_mark(config: Any, state: dict[str, Any]) -> None:
    if _MARK in state:
        setattr(config, _MARK, state[_MARK])
