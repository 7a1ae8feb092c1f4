"""Where every result passes by as bytes: CacheArtifactManager.record_artifact.

It is called when something was compiled and saved, and mostly also when it was found.
"""

from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, wrap
from s3cache.integration.pytorch import saving
from s3cache.integration.pytorch.requirements import cpu_codegen_requirements

from s3cache import client

MEMBER = "content"
NAMESPACES = {
    "inductor": "fx-graph",
    "aot_autograd": "aot-autograd",
    "autotune": "autotune",
    "pgo": "dynamo-pgo",
    "precompile": "precompile",
}
"""PyTorch's own artifact types. Others are custom ones."""
_GUARDED = {"fx-graph", "aot-autograd"}


def namespace_of(artifact_type: str) -> str:
    """Return the namespace of an artifact type."""
    return NAMESPACES.get(artifact_type) or f"artifact-{artifact_type}"


def install(module: ModuleType) -> None:
    """Hook `torch.compiler._cache`."""

    @guarded
    def keep(artifact_type: str, key: str, content: Any) -> None:
        cache = client.current()
        if cache is None:
            return
        namespace = namespace_of(artifact_type)
        result = saving.current.get()
        if namespace in _GUARDED and result is None:
            cache.use(namespace, key)
            return
        artifact = module.CacheArtifactFactory.encode_create(artifact_type, key, content)
        cache.put(
            namespace,
            key,
            {MEMBER: artifact.content},
            variant=result.guards if result else "",
            requires=cpu_codegen_requirements(artifact.content),
            cost_seconds=result.cost_seconds if result else 0.0,
        )

    def record_artifact(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        recorded = wrapped(*args, **kwargs)
        keep(*args, **kwargs)
        return recorded

    wrap(module, "CacheArtifactManager.record_artifact", record_artifact)
