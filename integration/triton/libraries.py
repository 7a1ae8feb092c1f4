"""Launchers and driver bindings: extension modules that Triton has gcc compile on every fresh machine."""

from s3cache.integration.hooks import guarded
from s3cache.integration.triton.requirements import EXTENSION
from s3cache.integration.triton.switch import active_client
from s3cache.machine import glibc

NAMESPACE = "triton-library"
_MEMBER = "library.so"


def is_one(filename: str) -> bool:
    """Return whether a file is a library for this Python."""
    return filename.endswith(EXTENSION)


@guarded
def use(key: str) -> None:
    """Note that a library was found in Triton's folder."""
    if cache := active_client():
        cache.use(NAMESPACE, key)


@guarded
def fetch(key: str) -> bytes | None:
    """Return a library that loads here, or None."""
    cache = active_client()
    entry = cache.get(NAMESPACE, key) if cache else None
    return entry.members[_MEMBER] if entry else None


@guarded
def store(key: str, content: bytes) -> None:
    """Store a library that was compiled here."""
    if cache := active_client():
        cache.put(NAMESPACE, key, {_MEMBER: content}, requires={"glibc": glibc(), "extension": EXTENSION})
