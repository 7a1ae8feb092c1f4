"""Making Triton ask us: in a process that has imported torch, whatever starts it."""

import os
from types import ModuleType

from s3cache.integration.hooks import HookMissing, require

VARIABLE = "TRITON_CACHE_MANAGER"
OURS = "s3cache.integration.triton.cache_manager:S3CacheManager"
_GROUP_LAYOUT = {"__grp__", "child_paths"}
"""What stands in a group file's name, and in it: kernels.on_disk reads it."""
TIMINGS_VARIABLE = "TRITON_CACHE_AUTOTUNING"


def install(module: ModuleType) -> None:
    """Hook `triton.runtime.cache`. Raises HookMissing if it is not as expected."""
    require(module, "FileCacheManager.get_group", "FileCacheManager.put_group")
    require(module, "knobs.cache.manager_class", "knobs.autotuning.cache")
    if not _GROUP_LAYOUT.issubset(module.FileCacheManager.put_group.__code__.co_consts):
        raise HookMissing("the known layout of groups")
    knobs = module.knobs
    # By the environment, a child would take it over that cannot import us.
    if os.environ.get(VARIABLE) == OURS:
        del os.environ[VARIABLE]
    if not os.environ.get(VARIABLE) and knobs.cache.manager_class is None:
        from s3cache.integration.triton.cache_manager import S3CacheManager

        knobs.cache.manager_class = S3CacheManager
    if not os.environ.get(TIMINGS_VARIABLE):
        knobs.autotuning.cache = True
