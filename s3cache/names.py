"""The one gate for names: what may be a namespace, a key or a member, and where objects lie.

packs/<digest>
packs/<digest>/<offset>                one frame of a pack, in the disk tier
manifests/<namespace>/<key>/<slot>
claims/<namespace>/<key>               somebody is storing this, and what follows
profiles/<job>/<platform>/<segment>
preludes/<job>/<platform>              what a start reads first of a profile
catalogs/<job>/<platform>/<segment>    the segment's catalog, in the disk tier
"""

import re

from s3cache.digest import digest_of
from s3cache.errors import InvalidName

KERNELS_JOB = "kernels"
"""The job in whose profile kernels are that were compiled ahead, for all jobs."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


def component(text: str) -> str:
    """Return `text` if it can stand between two slashes everywhere, else a name made of its digest."""
    return text if _PLAIN.match(text) else f"~{digest_of(text.encode(errors='surrogateescape'))[:40]}"


def check_namespace(namespace: str) -> str:
    """Return `namespace`.

    Raises InvalidName when it is not plain letters, digits, dots, dashes and underscores.
    """
    if not _PLAIN.match(namespace):
        raise InvalidName(f"a namespace is letters, digits, '.', '_' and '-': {namespace!r}")
    return namespace


def check_member(name: str) -> str:
    """Return `name`: the relative path of a member.

    Raises InvalidName when it is absolute, climbs out, or holds anything but plain components.
    """
    if len(name) > 1024 or not all(_PLAIN.match(part) for part in name.split("/")):
        raise InvalidName(f"a member's name is a relative path of plain components: {name!r}")
    return name


def pack_name(digest: bytes) -> str:
    """Return the name of the object that holds a pack."""
    return f"packs/{digest.hex()}"


def frame_name(digest: bytes, offset: int) -> str:
    """Return the name that one frame of a pack has in the disk tier."""
    return f"packs/{digest.hex()}/{offset}"


def manifest_name(namespace: str, key: str, slot: int) -> str:
    """Return the name of the object that holds the manifest in one slot of a key."""
    return f"manifests/{namespace}/{component(key)}/{slot}"


def catalog_prefixes(job: str, platform: str) -> tuple[str, ...]:
    """Return what the names of catalogs begin with, in the disk tier, that a job looks into.

    Its own come first, then those of the kernels that were compiled ahead.
    """
    return tuple(f"catalogs/{component(each)}/{platform}/" for each in dict.fromkeys((job, KERNELS_JOB)))


def unsent_name(manifest: str) -> str:
    """Return the name that a manifest has in the disk tier while the bucket does not take it."""
    return f"unsent/{manifest}"


def claim_name(namespace: str, key: str) -> str:
    """Return the name of the object by which a machine says that it is about to store a key."""
    return f"claims/{namespace}/{component(key)}"


def catalog_name(segment: str) -> str:
    """Return the name that the catalog of a segment has in the disk tier."""
    return segment.replace("profiles/", "catalogs/", 1)


def prelude_name(prefix: str) -> str:
    """Return the name of the object that holds the prelude of the profile of that prefix."""
    return prefix.replace("profiles/", "preludes/", 1).rstrip("/")


def profile_prefix(job: str, platform: str) -> str:
    """Return what the names of all segments of a job's profile begin with."""
    return f"profiles/{component(job)}/{platform}/"
