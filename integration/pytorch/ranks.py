"""Ranks on several machines agree, through the store of their process group, on what all of them see."""

import logging
import os
import time
from datetime import timedelta
from functools import partial
from types import ModuleType
from typing import Any

from s3cache import client, view
from s3cache.digest import digest_of
from s3cache.integration.hooks import guarded, require, wrap
from s3cache.pinned import are_on_several_machines
from s3cache.view import View

logger = logging.getLogger(__name__)

_AGREED = "agreed"
_NOTHING = View()


def install(module: ModuleType) -> None:
    """Hook `torch.distributed.distributed_c10d`. Raises HookMissing if it is not as expected."""
    require(module, "PrefixStore", "_world.pg_map")

    def update(wrapped: Any, _: Any, args: Any, kwargs: Any) -> Any:
        wrapped(*args, **kwargs)
        _agree(module, *args, **kwargs)

    # All ranks come by here before the first collective, whatever name init_process_group was called by.
    wrap(module, "_update_default_pg", update)


@guarded
def _agree(module: Any, pg: Any) -> None:
    cache = client.current()
    # A group that is shrunk is not in the map yet: who is left has agreed.
    if cache is None or not cache.settings.pin or pg not in module._world.pg_map:
        return
    if are_on_several_machines(pg.size()):
        started = time.monotonic()
        # A store may outlive the ranks that torchrun starts again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = module.PrefixStore(f"s3cache/{attempt}", module._world.pg_map[pg][1])
        settled = partial(settle, store, pg.rank(), pg.size(), cache.settings.deadline_seconds)
        cache.agree(settled, _unknown())
        cache.waited("agreement", time.monotonic() - started)


def _unknown() -> set[str]:
    """Return what is not known of this machine yet, once all is learned that is."""
    import torch

    # Those who need them are loaded later, with the parts of PyTorch and Triton that they hook.
    from s3cache.integration.pytorch import requirements  # noqa: F401
    from s3cache.integration.triton import requirements as of_triton  # noqa: F401

    # To ask for the GPU is to initialize CUDA: then no fork of this process could use it.
    return set() if torch.cuda.is_initialized() else {"gpu"}


def settle(store: Any, rank: int, size: int, seconds: float, mine: View) -> View:
    """Return what all ranks have: the first decision that is in the store stays, so none has another one.

    Rank 0 decides when it knows what each has. Who has waited for so many seconds decides for all that
    nothing is seen.
    """
    store.set(f"of/{rank}", _put(store, mine))
    # To some stores, no time at all is no bound.
    patience = timedelta(seconds=max(seconds, 0.001))
    try:
        if rank:
            store.wait([_AGREED], patience)
        else:
            store.wait([f"of/{each}" for each in range(size)], patience)
            common = mine
            for digest in {store.get(f"of/{each}") for each in range(size)}:
                common &= _get(store, digest)
            store.compare_set(_AGREED, "", _put(store, common))
    except RuntimeError:
        store.compare_set(_AGREED, "", _put(store, _NOTHING))
    agreed = _get(store, store.get(_AGREED))
    if agreed == _NOTHING != mine:
        logger.warning(
            "the ranks did not agree within %g s, or have nothing in common: they compile; "
            "S3CACHE_DEADLINE says how long they may wait for each other",
            seconds,
        )
    return agreed


def _put(store: Any, seen: View) -> str:
    """Put a view into the store, unless an equal one is there, and return by what it is known."""
    data = view.encode(seen)
    digest = digest_of(data)
    if not store.check([digest]):
        store.set(digest, data)
    return digest


def _get(store: Any, digest: bytes) -> View:
    return view.decode(store.get(digest.decode()))
