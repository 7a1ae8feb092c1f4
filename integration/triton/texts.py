"""The texts of a kernel that came from us: `kernel.asm["ptx"]` fetches what a launch did not need."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.triton import kernels

_SOURCE = "source"


def install(module: ModuleType) -> None:
    """Hook `triton.compiler.compiler`. Raises HookMissing if it is not as expected."""
    require(module, "AsmDict", "AsmDict.__missing__")

    class AsmOnDemand(module.AsmDict):  # type: ignore[name-defined, misc]
        """A kernel's texts and binary; one that is not there is looked for in the cache."""

        def __init__(self, texts: dict[str, Any], key: str) -> None:
            super().__init__(texts)
            self._key = key

        # A compile worker hands its kernels over, to a process that may know no such class.
        def __reduce__(self) -> Any:
            return module.AsmDict, (dict(self),)

        def __missing__(self, name: str) -> Any:
            if name != "sass" and (text := kernels.text(self._key, name)) is not None:
                self[name] = text
                return text
            return super().__missing__(name)

    def init(wrapped: Callable[..., None], kernel: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        _replace(kernel)

    @guarded
    def _replace(kernel: Any) -> None:
        if _SOURCE not in kernel.asm:
            kernel.asm = AsmOnDemand(kernel.asm, _key(kernel.hash))

    wrap(module, "CompiledKernel.__init__", init)


def _key(digest: str) -> str:
    """Return the key under which Triton files a kernel of that hash."""
    from triton.runtime.cache import _base32

    key: str = _base32(digest)
    return key
