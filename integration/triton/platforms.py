"""The platform in the keys of libraries: it must not depend on whether a program `file` is installed.

Triton asks Python, and Python asks that program how executables are linked.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import wrap

_LINKAGE = "ELF"


def install(module: ModuleType) -> None:
    """Hook `triton.runtime.build`. Raises HookMissing if it is not as expected."""
    wrap(module, "platform_key", _platform_key)


def _platform_key(wrapped: Callable[[], str], _: Any, args: Any, kwargs: Any) -> str:
    key = wrapped(*args, **kwargs)
    return key + _LINKAGE if sys.platform == "linux" and key.endswith(",") else key
