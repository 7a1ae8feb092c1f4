"""Dynamo's profile of a job, which says what to compile dynamic at once."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch import code_states
from s3cache.integration.pytorch.switch import active_client


def install(module: ModuleType) -> None:
    """Hook `torch._dynamo.pgo`. Raises HookMissing if it is not as expected."""
    require(module, "code_state_path", "write_local_impl", "should_use_remote_dynamo_pgo_cache")
    require(module, "_CODE_STATE", "CodeId", "CodeState", "FrameStateSizeEntry.__ior__")
    require(module, "get_local_code_state", "put_local_code_state")

    def get_local(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        _restore(module, *args, **kwargs)
        return wrapped(*args, **kwargs)

    def put_local(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        result = wrapped(*args, **kwargs)
        _record(module, *args, **kwargs)
        return result

    wrap(module, "get_local_code_state", get_local)
    wrap(module, "put_local_code_state", put_local)


@guarded
def _restore(pgo: Any, cache_key: str) -> None:
    path = pgo.code_state_path(cache_key)
    client = active_client()
    if path is None or client is None or pgo.should_use_remote_dynamo_pgo_cache():
        return
    if Path(path).exists():
        client.use(code_states.NAMESPACE, cache_key)
    elif content := code_states.stored(client, cache_key):
        pgo.write_local_impl(cache_key, content)


@guarded
def _record(pgo: Any, cache_key: str) -> None:
    if active_client() and pgo.code_state_path(cache_key) is not None:
        code_states.recorder.offer(cache_key, pgo._CODE_STATE)
