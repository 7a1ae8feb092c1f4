"""s3cache: an S3-backed cache for what torch.compile and Triton produce.

    async with s3cache.open("s3://bucket/prefix") as cache:
        await cache.put("my-namespace", key, {"result.bin": content})
        entry = await cache.get("my-namespace", key)

`open_sync` is its synchronous face. Nothing is imported before it is asked for: `import torch` loads
this package in every process.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3cache.api import SyncCache, open, open_sync
    from s3cache.cache import Cache
    from s3cache.errors import (
        BucketAbsent,
        Corrupt,
        CredentialsAbsent,
        DiskFull,
        DiskTierError,
        Forbidden,
        InvalidName,
        ObjectAbsent,
        S3CacheError,
        SettingsError,
        SlotsExhausted,
        StoreError,
        Unreachable,
        WrongRegion,
    )
    from s3cache.manifest import Entry
    from s3cache.settings import Mode, Settings

_HOMES = {
    "api": ("SyncCache", "open", "open_sync"),
    "cache": ("Cache",),
    "errors": (
        "BucketAbsent",
        "Corrupt",
        "CredentialsAbsent",
        "DiskFull",
        "DiskTierError",
        "Forbidden",
        "InvalidName",
        "ObjectAbsent",
        "S3CacheError",
        "SettingsError",
        "SlotsExhausted",
        "StoreError",
        "Unreachable",
        "WrongRegion",
    ),
    "manifest": ("Entry",),
    "settings": ("Mode", "Settings"),
}
_HOME_OF = {name: home for home, public in _HOMES.items() for name in public}

__all__ = [
    "BucketAbsent",
    "Cache",
    "Corrupt",
    "CredentialsAbsent",
    "DiskFull",
    "DiskTierError",
    "Entry",
    "Forbidden",
    "InvalidName",
    "Mode",
    "ObjectAbsent",
    "S3CacheError",
    "Settings",
    "SettingsError",
    "SlotsExhausted",
    "StoreError",
    "SyncCache",
    "Unreachable",
    "WrongRegion",
    "open",
    "open_sync",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"s3cache.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
