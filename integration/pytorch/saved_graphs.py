"""FX graphs and AOTAutograd's results as they pass by as bytes: CacheArtifactManager.record_artifact.

PyTorch calls it when it saved a result it compiled, and also when it found one.
"""

from types import ModuleType
from typing import Any

from s3cache import client
from s3cache.integration.hooks import guarded, wrap
from s3cache.integration.pytorch import saving
from s3cache.integration.pytorch.requirements import cpu_codegen_requirements

_NAMESPACES = {"inductor": "fx-graph", "aot_autograd": "aot-autograd"}


def install(module: ModuleType) -> None:
    """Hook `torch.compiler._cache`. Raises HookMissing if it is not as expected."""
    wrap(module, "CacheArtifactManager.record_artifact", _record_artifact)


def _record_artifact(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    recorded = wrapped(*args, **kwargs)
    _keep(*args, **kwargs)
    return recorded


@guarded
def _keep(artifact_type: str, key: str, content: bytes) -> None:
    cache = client.current()
    namespace = _NAMESPACES.get(artifact_type)
    if cache is None or namespace is None:
        return
    result = saving.current.get()
    if result is None:
        # What was found may have been compiled for another vector ISA: that is not known here.
        cache.use(namespace, key)
        return
    cache.put(
        namespace,
        key,
        {saving.MEMBER: content},
        variant=result.guards,
        requires=cpu_codegen_requirements(content),
        cost_seconds=result.cost_seconds,
    )
