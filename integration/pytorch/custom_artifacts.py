"""Artifacts of types that are not PyTorch's own: whatever registers with CacheArtifactFactory."""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

from s3cache import names
from s3cache.digest import digest_of
from s3cache.errors import InvalidName
from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch.switch import active_client
from s3cache.manifest import Entry

_CONTENT = "content"
_TIME = "recorded-at"
_COMPILES = "torch._dynamo.callback"


def install(module: ModuleType) -> None:
    """Hook `torch.compiler._cache`. Raises HookMissing if it is not as expected."""
    require(module, "CacheArtifactFactory._artifact_types", "CacheArtifactFactory.encode_create")
    require(module, "CacheArtifactFactory.register", "CacheArtifactManager.record_artifact")
    types = module.CacheArtifactFactory._artifact_types
    unready: list[Any] = []

    def register(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        artifact_class = wrapped(*args, **kwargs)
        _restore(artifact_class, unready)
        return artifact_class

    def record(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        result = wrapped(*args, **kwargs)
        _record(module.CacheArtifactFactory, *args, **kwargs)
        return result

    def compile_starts(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        while unready:
            guarded(unready.pop(0).populate_cache)()
        return wrapped(*args, **kwargs)

    @guarded
    def when_compiling(callback: ModuleType) -> None:
        wrap(callback, "CompilationCallbackHandler.run_start_callbacks", compile_starts)

    wrap(module, "CacheArtifactFactory.register", register)
    wrap(module, "CacheArtifactManager.record_artifact", record)
    for artifact_class in list(types.values()):
        _restore(artifact_class, unready)
    register_post_import_hook(when_compiling, _COMPILES)


@guarded
def _restore(artifact_class: Any, unready: list[Any]) -> None:
    """Populate all that the job's profile has of a type.

    A class is often registered before what its artifacts populate is defined, further down in its
    module: those are populated when the first compilation starts.
    """
    client = active_client() if _is_custom(artifact_class) else None
    if client is None:
        return
    namespace = _namespace(artifact_class.type())
    for found, key in client.profile(namespace):
        entries = client.variants(namespace, key) if found == namespace else ()
        for entry in sorted(entries, key=_recorded_at):
            artifact = artifact_class(key, entry.members[_CONTENT])
            try:
                artifact.populate_cache()
            except Exception:
                unready.append(artifact)


@guarded
def _record(factory: Any, artifact_type: str, key: str, content: Any) -> None:
    client = active_client() if _is_custom(factory._artifact_types[artifact_type]) else None
    if client:
        encoded = factory.encode_create(artifact_type, key, content).content
        members = {_CONTENT: encoded, _TIME: str(time.time_ns()).encode()}
        # What a value means is not known: all are kept, and populated in the order they came in.
        client.put(_namespace(artifact_type), key, members, variant=digest_of(encoded))


def _recorded_at(entry: Entry) -> int:
    return int(entry.members[_TIME])


def _is_custom(artifact_class: Any) -> bool:
    return not artifact_class.__module__.startswith("torch.")


def _namespace(artifact_type: str) -> str:
    try:
        return names.check_namespace(f"artifact-{artifact_type}")
    except InvalidName:
        return f"artifact-{digest_of(artifact_type.encode())[:40]}"
