"""The best launch configuration of each Triton kernel, as Inductor's autotuner found it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch import best_configs
from s3cache.integration.pytorch.switch import active_client


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.runtime.autotune_cache`. Raises HookMissing if it is not as expected."""
    require(module, "AutotuneCache.read_best", "AutotuneCache.save")
    wrap(module, "AutotuneCache.read_best", _read_best)
    wrap(module, "AutotuneCache.save", _save)


def _read_best(wrapped: Callable[..., Any], cache: Any, args: Any, kwargs: Any) -> Any:
    best = None
    for content in _stored(cache) or []:
        _place(cache, content)
        # Inductor judges: what it cannot use with its present settings, it refuses.
        if (best := wrapped(*args, **kwargs)) is not None:
            break
    return wrapped(*args, **kwargs) if best is None else best


def _save(wrapped: Callable[..., Any], cache: Any, args: Any, kwargs: Any) -> Any:
    result = wrapped(*args, **kwargs)
    _record(cache)
    return result


@guarded
def _stored(cache: Any) -> list[bytes]:
    path = _local_path(cache)
    client = active_client()
    if client is None or path is None:
        return []
    if path.exists():
        best_configs.use(client, _key(path))
        return []
    return best_configs.stored(client, _key(path))


@guarded
def _place(cache: Any, content: bytes) -> None:
    from torch._inductor.codecache import write_atomic

    write_atomic(str(_local_path(cache)), content, make_dirs=True)


@guarded
def _record(cache: Any) -> None:
    path = _local_path(cache)
    client = active_client()
    if client and path:
        best_configs.put(client, _key(path), path.read_bytes())


def _local_path(cache: Any) -> Path | None:
    """Return where Inductor keeps the configuration; None where its remote cache serves instead."""
    if cache.local_cache is None or cache.remote_cache is not None:
        return None
    return Path(cache.local_cache[1])


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
