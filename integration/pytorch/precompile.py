"""Dynamo's packages under `caching_precompile`: they let a function run without being traced."""

import atexit
import importlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from s3cache.client import Client
from s3cache.digest import digest_of
from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch.requirements import build, cpu_codegen_requirements
from s3cache.integration.pytorch.switch import active_client

NAMESPACE = "precompile"
_PACKAGE = "content"
_BASIS = "basis"

_unsaved: set[str] = set()


def install(module: ModuleType) -> None:
    """Hook `torch._dynamo.package`. Raises HookMissing if it is not as expected."""
    require(module, "CompilePackage.source_id_from_fn", "SystemInfo.current", "_get_module_content")
    require(module, "DiskDynamoCache.path_prefix", "DiskDynamoStore._write_to_local_cache")
    require(module, "DynamoStore.save_cache_entry", "DynamoCache")

    def load(wrapped: Callable[..., Any], cache: Any, args: Any, kwargs: Any) -> Any:
        _restore(module, cache, *args, **kwargs)
        return wrapped(*args, **kwargs)

    def write(wrapped: Callable[..., Any], store: Any, args: Any, kwargs: Any) -> Any:
        result = wrapped(*args, **kwargs)
        if isinstance(store, module.DiskDynamoCache):
            _record(module, store, *args, **kwargs)
        return result

    def record_package(wrapped: Callable[..., Any], store: Any, args: Any, kwargs: Any) -> Any:
        result = wrapped(*args, **kwargs)
        _note(*args, **kwargs)
        return result

    wrap(module, "DiskDynamoCache.load", load)
    wrap(module, "DiskDynamoStore.write", write)
    wrap(module, "DynamoStore.record_package", record_package)
    atexit.register(_save_the_rest, module)


@guarded
def _restore(package: Any, cache: Any, fn: Any) -> None:
    from torch._dynamo.eval_frame import innermost_fn

    source_id = package.CompilePackage.source_id_from_fn(fn)
    client = active_client()
    if client is None:
        return
    key = _key(client, source_id, _source_digest(package, innermost_fn(fn).__module__))
    if Path(cache.path_prefix(), source_id).exists():
        client.use(NAMESPACE, key)
        return
    most, content = 0, b""
    for entry in client.variants(NAMESPACE, key):
        basis = json.loads(entry.members[_BASIS])
        if basis["guarded_codes"] > most and _holds(package, basis):
            most, content = basis["guarded_codes"], entry.members[_PACKAGE]
    if content:
        cache._write_to_local_cache(content, source_id)


@guarded
def _record(package: Any, cache: Any, cache_entry: Any, path: str) -> None:
    _unsaved.discard(path)
    dynamo = cache_entry.dynamo
    sources = {s.module: digest_of(s.content.encode()) for s in dynamo.source_info.inlined_sources}
    main = dynamo.codes[0].python_module
    client = active_client()
    basis = {
        "device": _device(package, dynamo.device_type),
        "sources": sources,
        "guarded_codes": sum(len(c.guarded_codes) for c in dynamo.codes if not c.bypassed),
    }
    # What was not traced from source that can be read cannot be told from what it was edited into.
    if client is None or main not in sources or not basis["guarded_codes"]:
        return
    content = Path(cache.path_prefix(), path, "entry").read_bytes()
    basis_content = json.dumps(basis, sort_keys=True).encode()
    client.put(
        NAMESPACE,
        _key(client, path, sources[main]),
        {_PACKAGE: content, _BASIS: basis_content},
        variant=digest_of(basis_content),
        requires=cpu_codegen_requirements(content),
    )


@guarded
def _note(compile_package: Any) -> None:
    if active_client():
        _unsaved.add(compile_package.source_id)


@guarded
def _save_the_rest(package: Any) -> None:
    """Save what was compiled since anything was saved: Dynamo does it only in `save_cache_artifacts`."""
    from torch._dynamo.precompile_context import PrecompileContext

    for source_id in sorted(_unsaved):
        entry = PrecompileContext._dynamo_cache_entries.get(source_id)
        # A backward that never ran was never compiled; without it the package is of no use.
        if entry and all(map(PrecompileContext.serialize_artifact_by_key, entry.backend_ids)):
            package.DynamoCache.save_cache_entry(entry, source_id)


def _holds(package: Any, basis: dict[str, Any]) -> bool:
    """Return whether a package was made of the same sources and for a device like this one.

    Dynamo drops the guards that pin functions: any change to a traced file must miss.
    """
    device = basis["device"]
    return device == _device(package, device["type"]) and all(
        _source_digest(package, name) == digest for name, digest in basis["sources"].items()
    )


def _source_digest(package: Any, name: str) -> str:
    """Return the digest of a module's source; empty when it has none."""
    try:
        return digest_of(package._get_module_content(importlib.import_module(name)).encode())
    except (ImportError, OSError, TypeError):
        return ""


def _device(package: Any, device_type: str) -> dict[str, str]:
    if device_type == "cpu":
        return {"type": device_type}
    info = package.SystemInfo.current()
    return {
        "type": device_type,
        "name": str(info.gpu_name),
        "toolkit": str(info.toolkit_version),
        "triton": str(info.triton_version),
    }


def _key(client: Client, source_id: str, source_digest: str) -> str:
    """Dynamo's key is a function's name and line; what else must hold for any package is added.

    Jobs do not share packages: which function a model was given to call is a guard that is dropped.
    """
    import torch.compiler.config

    parts = [source_id, source_digest, build(), platform.python_version()]
    parts += [client.settings.job, torch.compiler.config.cache_key_tag]
    return digest_of("\n".join(parts).encode())
