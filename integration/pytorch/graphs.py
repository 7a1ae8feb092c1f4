"""FX graphs, and the search among guarded results that AOTAutograd shares with them."""

import logging
import pickle
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from s3cache import client
from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch.saving import MEMBER, saves

logger = logging.getLogger(__name__)

_NAMESPACES = {"FxGraphCache": "fx-graph", "AOTAutogradCache": "aot-autograd"}


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.codecache`. Raises HookMissing if it is not as expected."""
    require(module, "GuardedCache.iterate_over_candidates", "FxGraphCache._save_graph")
    wrap(module, "GuardedCache.iterate_over_candidates", _candidates)
    wrap(module, "FxGraphCache._save_graph", saves("compiled_graph", 1))


def _candidates(wrapped: Any, cls: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, bytes, bool]]:
    """Offer what PyTorch's own caches have, then every other variant that ours has."""
    offered, is_remote = set(), False
    for candidate in wrapped(*args, **kwargs):
        offered.add(candidate[1])
        is_remote |= not candidate[2]
        yield candidate
    stored = _stored(cls, args, kwargs, offered, is_remote)
    while (found := _next(stored)) is not None:
        yield found


@guarded
def _next(stored: Iterator[tuple[Any, bytes, bool]]) -> tuple[Any, bytes, bool] | None:
    return next(stored, None)


def _stored(
    cls: Any, args: Any, kwargs: Any, offered: set[bytes], is_remote: bool
) -> Iterator[tuple[Any, bytes, bool]]:
    local, remote_cache, key = _arguments(*args, **kwargs)
    cache = client.current()
    namespace = _NAMESPACES.get(cls.__name__)
    # PyTorch asks a remote cache for one value of a key. That one is ours: if it had none, we have none.
    if cache is None or namespace is None or (remote_cache is not None and not is_remote):
        return
    for entry in cache.variants(namespace, key):
        content = entry.members.get(MEMBER, b"")
        if content in offered:
            continue
        try:
            candidate = pickle.loads(content)  # noqa: S301
            candidate.guards_expr  # noqa: B018
        except Exception as error:
            logger.warning("%s %s slot %d cannot be loaded: %r", namespace, key, entry.slot, error)
            continue
        if local:
            _write_locally(cls, namespace, key, content)
        yield candidate, content, remote_cache is None


def _write_locally(cls: Any, namespace: str, key: str, content: bytes) -> None:
    try:
        cls._write_to_local_cache(key, content)
    except OSError as error:
        logger.warning("%s %s is used, but cannot be kept: %s", namespace, key, error)


def _arguments(local: bool, remote_cache: Any, key: str) -> tuple[bool, Any, str]:
    return local, remote_cache, key
