"""What Triton asks for compiled kernels, instead of its own manager: the same folder first, then us.

Triton makes one of these for each key. TRITON_CACHE_MANAGER names the class, or
s3cache.integration.triton.selection sets it.
"""

import sys
from importlib import import_module
from typing import Any, cast

from triton.runtime.cache import FileCacheManager

from s3cache.integration.hooks import guarded
from s3cache.integration.triton import autotuner_timings, kernels, libraries, platforms, texts

_KINDS = (libraries, autotuner_timings)


class S3CacheManager(FileCacheManager):  # type: ignore[misc]
    """Triton's manager of one key's files. Overrides and dumps are left to Triton."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        super().__init__(key, override=override, dump=dump)
        self._is_cache = not (override or dump)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Return the paths of a kernel's files; None when it has to be compiled."""
        if not self._is_cache:
            return cast(dict[str, str] | None, super().get_group(filename))
        group = kernels.on_disk(self.cache_dir, filename)
        if group is None:
            return kernels.restore(super(), self.cache_dir, self.key, filename)  # type: ignore[arg-type]
        kernels.use(self.key)
        return group

    def put_group(self, filename: str, group: dict[str, str]) -> Any:
        """Note which files make up a kernel, and store it."""
        path = super().put_group(filename, group)
        if self._is_cache:
            kernels.store(self.cache_dir, self.key, filename)
        return path

    def get_file(self, filename: str) -> str | None:
        """Return the path of a file; None when it has to be made."""
        path: str | None = super().get_file(filename)
        if self._is_cache:
            for kind in _KINDS:
                if kind.is_one(filename):
                    if path is not None:
                        kind.use(self.key)
                    elif (content := kind.fetch(self.key)) is not None:
                        path = super().put(content, filename)
        return path

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        """Write a file, and store it if it is of a kind that is stored by itself."""
        path: str = super().put(data, filename, binary=binary)
        if self._is_cache:
            for kind in _KINDS:
                if kind.is_one(filename):
                    kind.store(self.key, data if isinstance(data, bytes) else str(data).encode())
        return path


if "s3cache.integration.triton.selection" not in sys.modules:
    # The environment named this class, where no torch has called us: Triton is all there by now.
    guarded(texts.install)(import_module("triton.compiler.compiler"))
    guarded(platforms.install)(import_module("triton.runtime.build"))
