"""Dynamo's packages under `caching_precompile`: they let a function run without being traced."""

import atexit
import importlib
import itertools
import json
import logging
import pickle
import platform
import secrets
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from s3cache.client import Client
from s3cache.digest import digest_of
from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch.requirements import build, cpu_codegen_requirements
from s3cache.integration.pytorch.switch import active_client

logger = logging.getLogger(__name__)

NAMESPACE = "precompile"
_PACKAGE = "content"
_BASIS = "basis"

_unsaved: set[str] = set()


def install(module: ModuleType) -> None:
    """Hook `torch._dynamo.package`. Raises HookMissing if it is not as expected."""
    require(module, "CompilePackage.source_id_from_fn", "CompilePackage.install", "load_guards_state")
    require(module, "CompilePackage.uninstall")
    require(module, "SystemInfo.current", "_get_module_content", "PrecompileCacheEntry")
    require(module, "DiskDynamoCache.path_prefix", "DiskDynamoCache.load", "DiskDynamoStore.write")
    require(module, "DynamoStore.record_package", "InMemoryDynamoStore.load_cache_entry")

    def load(wrapped: Callable[..., Any], cache: Any, args: Any, kwargs: Any) -> Any:
        entry = _restore(module, cache, *args, **kwargs) or wrapped(*args, **kwargs)
        if entry is not None:
            _leave_names_alone()
        return entry

    def write(wrapped: Callable[..., Any], store: Any, args: Any, kwargs: Any) -> Any:
        result = wrapped(*args, **kwargs)
        if isinstance(store, module.DiskDynamoCache):
            _record(module, *args, **kwargs)
        return result

    def record_package(wrapped: Callable[..., Any], store: Any, args: Any, kwargs: Any) -> Any:
        result = wrapped(*args, **kwargs)
        _note(*args, **kwargs)
        return result

    wrap(module, "CompilePackage.install", _install_package)
    wrap(module, "DiskDynamoCache.load", load)
    wrap(module, "DiskDynamoStore.write", write)
    wrap(module, "DynamoStore.record_package", record_package)
    atexit.register(_record_the_rest, module)


def _install_package(wrapped: Callable[..., Any], package: Any, args: Any, kwargs: Any) -> Any:
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        # Dynamo compiles afresh after a RuntimeError, if it finds the package as it was before.
        _take_out(package)
        raise RuntimeError(f"a package cannot be loaded: {error!r}") from error


@guarded
def _take_out(package: Any) -> None:
    """Undo what an install has done until it failed."""
    # It notes a name each time that it sets it, and stumbles over one that it takes out twice. Names of
    # modules are those of other packages, too, which cannot do without.
    package._installed_globals = {
        module: [
            name
            for name in dict.fromkeys(noted)
            if name in vars(module) and not isinstance(vars(module)[name], ModuleType)
        ]
        for module, noted in package._installed_globals.items()
    }
    package.uninstall()
    package._codes = {}
    package._initialized = False


@guarded
def _restore(package: Any, cache: Any, fn: Any) -> Any:
    """Return the package that knows most, as Dynamo itself loads one; None if there is none.

    It is not put into PyTorch's folder: some that Dynamo loads, and then cannot use, end a job that
    runs without these hooks.
    """
    from torch._dynamo.eval_frame import innermost_fn
    from torch._dynamo.utils import counters

    source_id = package.CompilePackage.source_id_from_fn(fn)
    client = active_client()
    if client is None:
        return None
    key = _key(client, source_id, _source_digest(package, innermost_fn(fn).__module__))
    if Path(cache.path_prefix(), source_id).exists():
        client.use(NAMESPACE, key)
        return None
    most, content = 0, b""
    for entry in client.variants(NAMESPACE, key):
        basis = json.loads(entry.members[_BASIS])
        if basis["guarded_codes"] > most and _holds(package, basis):
            most, content = basis["guarded_codes"], entry.members[_PACKAGE]
    if not content:
        return None
    store = package.InMemoryDynamoStore()
    store.write(pickle.loads(content), source_id)  # noqa: S301
    loaded = store.load_cache_entry(source_id)
    counters["dynamo_cache"]["dynamo_cache_hit"] += 1
    return loaded


@guarded
def _record(package: Any, cache_entry: Any, path: str) -> None:
    _unsaved.discard(path)
    client = active_client()
    dynamo = cache_entry.dynamo
    sources = {s.module: digest_of(s.content.encode()) for s in dynamo.source_info.inlined_sources}
    main = dynamo.codes[0].python_module
    guarded_codes = [g for code in dynamo.codes if not code.bypassed for g in code.guarded_codes]
    # What was not traced from source that can be read cannot be told from what it was edited into.
    if client is None or main not in sources or not _can_be_loaded(package, guarded_codes):
        return
    device = _device(package, dynamo.device_type)
    basis = {"device": device, "sources": sources, "guarded_codes": len(guarded_codes)}
    basis_content = json.dumps(basis, sort_keys=True).encode()
    content = pickle.dumps(cache_entry)
    client.put(
        NAMESPACE,
        _key(client, path, sources[main]),
        {_PACKAGE: content, _BASIS: basis_content},
        variant=digest_of(basis_content),
        requires=cpu_codegen_requirements(content),
    )


@guarded
def _leave_names_alone() -> None:
    """Make Dynamo invent other names than those that a loaded package brings along.

    Before torch 2.15 it counts from zero and ends the job at the first name that is taken.
    """
    from torch._dynamo import bytecode_transformation

    if not hasattr(bytecode_transformation, "unique_id_unbound_in"):
        bytecode_transformation._unique_id_counter = itertools.count(secrets.randbits(48))


@guarded
def _note(compile_package: Any) -> None:
    if active_client():
        _unsaved.add(compile_package.source_id)


@guarded
def _record_the_rest(package: Any) -> None:
    """Store what was compiled since anything was saved: Dynamo saves only in `save_cache_artifacts`."""
    from torch._dynamo.precompile_context import PrecompileContext

    for source_id in sorted(_unsaved):
        dynamo = PrecompileContext._dynamo_cache_entries[source_id]
        backends = {name: PrecompileContext.serialize_artifact_by_key(name) for name in dynamo.backend_ids}
        # A backward that never ran was never compiled; without it the package is of no use.
        if all(backends.values()):
            _record(package, package.PrecompileCacheEntry(dynamo, backends), source_id)


def _can_be_loaded(package: Any, guarded_codes: list[Any]) -> bool:
    """Return whether Dynamo can read its own guards again, which is not always so; and if any are there."""
    try:
        for guarded_code in guarded_codes:
            package.load_guards_state(guarded_code.guards_state)
    except Exception as error:
        logger.info("a package is not stored, it could not be loaded again: %r", error)
        return False
    return bool(guarded_codes)


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
