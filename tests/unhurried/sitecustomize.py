"""Bounds that no busy machine reaches, for jobs and agents of tests that are not about time.

Python imports this first where the folder is on PYTHONPATH.
"""

import math
from types import ModuleType

from wrapt import register_post_import_hook

_BOUNDS: dict[str, dict[str, float]] = {
    "s3cache.client": {"PATIENCE_SECONDS": 60.0},
    "s3cache.agent.connection": {"STARTING_SECONDS": 20.0},
    "s3cache.agent.jobs": {"PROFILE_SECONDS": 60.0},
    "s3cache.agent.server": {"NICENESS": 0},
    "s3cache.bucket": {"LATE_SECONDS": math.inf},
    "s3cache.prefetch": {"PRELUDE_SECONDS": 60.0},
}


def _lift(module: ModuleType) -> None:
    for name, bound in _BOUNDS[module.__name__].items():
        assert hasattr(module, name), name
        setattr(module, name, bound)


for _name in _BOUNDS:
    register_post_import_hook(_lift, _name)
