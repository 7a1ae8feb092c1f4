"""What Inductor measured to choose by: matrix products under max-autotune, and padding."""

import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from s3cache.digest import digest_of
from s3cache.integration.hooks import HookMissing, guarded, require, wrap
from s3cache.integration.pytorch.switch import active_client

NAMESPACE = "gemm-autotune"
_TIMINGS = "timings"
_VALUE = "value"
_PARAMETERS = {"choices", "op", "inputs", "benchmark", "hint_override"}

_asked: set[tuple[str, str, str]] = set()
"""Inductor looks two or three times for the same: the bucket is asked once for a local file."""


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.codecache`. Raises HookMissing if it is not as expected."""
    require(module, "CacheBase.get_local_cache_path", "CacheBase.get_local_cache")
    require(module, "CacheBase.update_local_cache", "PersistentCache.lookup")
    require(module, "LocalCache.lookup", "LocalCache.set_value")
    parameters = inspect.signature(module.PersistentCache.lookup).parameters
    if missing := sorted(_PARAMETERS - parameters.keys()):
        raise HookMissing(f"{module.__name__}.PersistentCache.lookup({', '.join(missing)})")
    wrap(module, "PersistentCache.lookup", _lookup)
    wrap(module, "LocalCache.lookup", _lookup_value)
    wrap(module, "LocalCache.set_value", _set_value)


def _lookup(wrapped: Callable[..., Any], cache: Any, args: Any, kwargs: Any) -> Any:
    call = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    if not _is_on():
        return wrapped(**call)
    known = wrapped(**{**call, "benchmark": None})
    if all(choice in known for choice in call["choices"]):
        return known
    _restore(cache, call)
    if benchmark := call["benchmark"]:

        def measure(choices: Any) -> Any:
            started = time.monotonic()
            timings = benchmark(choices)
            _record(cache, call, timings, time.monotonic() - started)
            return timings

        return wrapped(**{**call, "benchmark": measure})
    return wrapped(**call)


def _lookup_value(wrapped: Callable[..., Any], cache: Any, args: Any, kwargs: Any) -> Any:
    value = wrapped(*args, **kwargs)
    if value is None and _restore_value(cache, *args):
        return wrapped(*args, **kwargs)
    return value


def _set_value(wrapped: Callable[..., Any], cache: Any, args: Any, kwargs: Any) -> Any:
    result = wrapped(*args, **kwargs)
    _record_value(cache, *args, **kwargs)
    return result


@dataclass(frozen=True)
class _Contest:
    """The kernels that compete for one operation, and where Inductor's file has their times."""

    key: str
    op: str
    inputs: str
    precision: str
    kernels: tuple[str, ...]

    @property
    def variant(self) -> str:
        """Machines measure different times: of one set of kernels, one measurement is kept."""
        return digest_of("\n".join(sorted(self.kernels)).encode())


@guarded
def _is_on() -> bool:
    from torch._inductor import config

    return bool(config.autotune_local_cache) and active_client() is not None


@guarded
def _restore(cache: Any, call: dict[str, Any]) -> None:
    client = active_client()
    contest = _contest(cache, call)
    question = (str(cache.get_local_cache_path()), contest.key, contest.variant)
    if client is None or question in _asked:
        return
    _asked.add(question)
    for entry in client.variants(NAMESPACE, contest.key):
        timings = json.loads(entry.members[_TIMINGS])
        # Times that two machines measured must not be compared.
        if all(kernel in timings for kernel in contest.kernels):
            local = cache.get_local_cache()
            inputs = local.setdefault(contest.op, {}).setdefault(contest.inputs, {})
            inputs.setdefault(contest.precision, {}).update(timings)
            cache.update_local_cache(local)
            return


@guarded
def _record(cache: Any, call: dict[str, Any], measured: dict[Any, float], seconds: float) -> None:
    if client := active_client():
        contest = _contest(cache, call)
        timings = {choice.hash_key(): timing for choice, timing in measured.items()}
        members = {_TIMINGS: json.dumps(timings).encode()}
        client.put(NAMESPACE, contest.key, members, variant=contest.variant, cost_seconds=seconds)


@guarded
def _restore_value(cache: Any, *keys: str) -> bool:
    client = active_client()
    if client is None or not _is_portable(keys):
        return False
    question = (str(cache.get_local_cache_path()), keys[0], _VALUE)
    if question in _asked:
        return False
    _asked.add(question)
    entry = client.get(NAMESPACE, _key(cache, *keys))
    if entry is None:
        return False
    local = cache.get_local_cache()
    local[keys[0]] = json.loads(entry.members[_VALUE])
    cache.update_local_cache(local)
    return True


@guarded
def _record_value(cache: Any, *keys: str, value: Any) -> None:
    client = active_client()
    if client is not None and _is_portable(keys):
        members = {_VALUE: json.dumps(value).encode()}
        client.put(NAMESPACE, _key(cache, *keys), members, variant=_VALUE)


def _is_portable(keys: tuple[str, ...]) -> bool:
    """How long a collective takes depends on a cluster that the key does not name."""
    return len(keys) == 1 and "c10d" not in keys[0]


def _contest(cache: Any, call: dict[str, Any]) -> _Contest:
    import torch
    from torch._inductor import codecache

    precision = getattr(codecache, "fp32_matmul_precision_key", torch.get_float32_matmul_precision)()
    inputs, hint = call["inputs"], call.get("hint_override")
    place = (call["op"], inputs if hint is None else f"{inputs}_{hint}", precision)
    kernels = tuple(choice.hash_key() for choice in call["choices"])
    return _Contest(_key(cache, *place), *place, kernels)


def _key(cache: Any, *parts: str) -> str:
    """Inductor's file is one for a kind of GPU; what it does not say of torch is said here."""
    import torch

    return digest_of(json.dumps([cache.system["hash"], torch.__version__, *parts]).encode())
