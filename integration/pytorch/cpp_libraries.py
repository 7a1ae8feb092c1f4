"""Compiled C++ libraries: in no cache of PyTorch's, and most of the time on a CPU.

Inductor writes a library's source to a file that is named by the source and the compiler's command
line, and looks for the library beside it. So that is where a stored one is put.
"""

import ctypes
import logging
import stat
import sys
import sysconfig
import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from s3cache.digest import digest_of
from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.placing import place
from s3cache.integration.pytorch.requirements import build
from s3cache.integration.pytorch.switch import active_client
from s3cache.machine import cpu_flags, glibc

logger = logging.getLogger(__name__)

NAMESPACE = "cpp-library"
MEMBER = "library.so"
_SOURCE = ".main.cpp"
_MODE = stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP
_NATIVE = ("-march=native", "-mcpu=native")

_being_loaded = threading.local()
_compiled_here: dict[str, tuple[str, dict[str, str]]] = {}


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.codecache`. Raises HookMissing if it is not as expected."""
    require(module, "write", "_precompile_header", "_worker_compile_cpp", "CppCodeCache._load_library")
    wrap(module, "write", _write)
    wrap(module, "_precompile_header", _precompile_header)
    wrap(module, "_worker_compile_cpp", _worker_compile_cpp)
    wrap(module, "CppCodeCache._load_library", _load_library)


def _write(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    key, path = wrapped(*args, **kwargs)
    if path.endswith(_SOURCE):
        _restore(path, args, kwargs)
    return key, path


def _source(content: str | bytes, extension: str, extra: str = "", **_: Any) -> tuple[str, str]:
    return content if isinstance(content, str) else content.decode(), extra


@guarded
def _restore(source_path: str, args: Any, kwargs: Any) -> None:
    """Put the library beside its source, if the cache has it, or note that it will be compiled."""
    library = Path(source_path.removesuffix(".cpp") + ".so")
    _being_loaded.present = library.exists()
    cache = active_client()
    if cache is None:
        return
    code, command = _source(*args, **kwargs)
    key = library_key(code, command)
    if _being_loaded.present:
        cache.use(NAMESPACE, key)
        return
    entry = cache.get(NAMESPACE, key)
    if entry is not None:
        place(library, entry.members[MEMBER], _MODE)
        if _loads(library):
            _being_loaded.present = True
            return
    requires = {"glibc": glibc()}
    if any(flag in command for flag in _NATIVE):
        requires["cpu_flags"] = cpu_flags()
    _compiled_here[str(library)] = key, requires


def _loads(library: Path) -> bool:
    """Return whether a library loads here; one that does not, as for want of a newer libstdc++, goes."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        logger.warning("%s is compiled again, since a stored one does not load: %s", library.name, error)
        library.unlink()
        return False
    return True


def library_key(code: str, command: str) -> str:
    """Return what names a library whatever folders PyTorch, Python and the caches lie in.

    PyTorch's own key has their paths in it, so that it is another one in each virtual environment.
    """
    text = f"{build()}\0{code}\0{command}"
    for path, word in _places():
        text = text.replace(path, word)
    return digest_of(text.encode())


def _places() -> list[tuple[str, str]]:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    places = [*_fixed_places(), (cache_dir(), "<cache>"), (default_cache_dir(), "<cache>")]
    return sorted(places, key=lambda place: -len(place[0]))


@cache
def _fixed_places() -> list[tuple[str, str]]:
    import torch

    return [
        (str(Path(torch.__file__).parent), "<torch>"),
        (sysconfig.get_path("purelib"), "<site-packages>"),
        (sys.prefix, "<prefix>"),
        (sys.base_prefix, "<base>"),
    ]


def _precompile_header(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Do without the precompiled header, which takes seconds, when there is nothing to compile."""
    return "" if getattr(_being_loaded, "present", False) else wrapped(*args, **kwargs)


def _worker_compile_cpp(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Do without the objects that a library is linked from, when it was put here without them."""
    return None if _is_without_objects(*args, **kwargs) else wrapped(*args, **kwargs)


@guarded
def _is_without_objects(lock_path: str, cpp_builders: Any) -> bool:
    *objects, library = (Path(builder.get_target_file_path()) for builder in cpp_builders)
    # While one is being linked here, all of them are there.
    return library.exists() and not all(path.exists() for path in objects)


def _load_library(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    library = wrapped(*args, **kwargs)
    _keep(*args, **kwargs)
    return library


@guarded
def _keep(path: str, key: str) -> None:
    """Store a library that was compiled here, now that it is known to load."""
    compiled = _compiled_here.pop(path, None)
    cache = active_client()
    if compiled is not None and cache is not None:
        key, requires = compiled
        cache.put(NAMESPACE, key, {MEMBER: Path(path).read_bytes()}, requires=requires)
