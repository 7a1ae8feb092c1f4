"""What `triton.autotune` measured: Triton keeps it where TRITON_CACHE_AUTOTUNING is on."""

from s3cache.integration.hooks import guarded
from s3cache.integration.triton.requirements import gpu
from s3cache.integration.triton.switch import active_client

NAMESPACE = "triton-autotune"
_MEMBER = "timings.json"
_SUFFIX = ".autotune.json"


def is_one(filename: str) -> bool:
    """Return whether a file holds an autotuner's timings."""
    return filename.endswith(_SUFFIX)


@guarded
def use(key: str) -> None:
    """Note that timings were found in Triton's folder."""
    if found := active_client():
        found.use(NAMESPACE, key)


@guarded
def fetch(key: str) -> bytes | None:
    """Return timings that were measured on a GPU like this one, or None."""
    found = active_client()
    entry = found.get(NAMESPACE, key) if found else None
    return entry.members[_MEMBER] if entry else None


@guarded
def store(key: str, content: bytes) -> None:
    """Store timings that were measured here."""
    if found := active_client():
        found.put(NAMESPACE, key, {_MEMBER: content}, requires={"gpu": gpu()})
