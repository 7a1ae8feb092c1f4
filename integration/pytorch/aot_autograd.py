"""AOTAutograd's results. They are searched where FX graphs are; here is only what saving them adds."""

from types import ModuleType

from s3cache.integration.hooks import wrap
from s3cache.integration.pytorch.saving import saves


def install(module: ModuleType) -> None:
    """Hook `torch._functorch._aot_autograd.autograd_cache`. Raises HookMissing if it is not as expected."""
    wrap(module, "AOTAutogradCache.save", saves("entry", 1))
