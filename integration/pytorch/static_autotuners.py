"""Kernels that a graph brings along: PyTorch names them by where they lay on the machine that compiled.

It would look there for the best configuration, tune again, and write there what it found.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, wrap
from s3cache.integration.pytorch.switch import active_client


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.triton_bundler`. Raises HookMissing if it is not as expected."""
    wrap(module, "TritonBundler.load_autotuners", _load_autotuners)


def _load_autotuners(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    _relocate(*args, **kwargs)
    return wrapped(*args, **kwargs)


@guarded
def _relocate(static_autotuners: Iterable[Any] | None) -> None:
    if active_client() is None:
        return
    for kernel in (static_autotuner.kernel for static_autotuner in static_autotuners or ()):
        if kernel.filename:
            kernel.filename = _here(kernel.filename)
        # A bound method of AutotuneCache, where there is anything to tune.
        saves: Any = getattr(kernel.save_cache_hook, "__self__", None)
        if local := getattr(saves, "local_cache", None):
            saves.local_cache = local[0], _here(local[1])


def _here(path: str) -> str:
    """Return where a file of PyTorch's folder on another machine lies in the folder of this one."""
    from torch._inductor.runtime.runtime_utils import cache_dir

    return str(Path(cache_dir(), *Path(path).parts[-2:]))
