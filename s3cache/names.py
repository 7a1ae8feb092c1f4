"""The one gate for names: what may be a namespace, a key or a member, and where objects lie.

packs/<digest>
packs/<digest>/<offset>                one frame of a pack, in the disk tier
manifests/<namespace>/<key>/<slot>
claims/<namespace>/<key>               somebody is storing this, and what follows
profiles/<job>/<platform>/<segment>
preludes/<job>/<platform>              what a start reads first of a profile
leases/<job>/<platform>/<day>          somebody used this profile on that day
condemned/<list>                       what nobody uses, and what a clean-up may delete a while later
catalogs/<job>/<platform>/<segment>    the segment's catalog, in the disk tier
views/<digest>                         what a pinned run sees, in the disk tier
"""

import re
import time
from enum import Enum

from s3cache.digest import digest_of
from s3cache.errors import InvalidName

KERNELS_JOB = "kernels"
"""The job in whose profile kernels are that were compiled ahead, for all jobs."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_COMPONENT = r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,127}|~[0-9a-f]{40})"
STAMPED = r"[0-9]{13}-[0-9a-f]{32}"
"""When an object was made, in milliseconds since 1970, and a digest of its bytes."""


class Kind(Enum):
    """The kinds of object in the bucket, by the folder in which they lie."""

    PACK = "packs"
    MANIFEST = "manifests"
    PROFILE = "profiles"
    PRELUDE = "preludes"
    LEASE = "leases"
    CLAIM = "claims"
    CONDEMNED = "condemned"


_PATTERNS = {
    Kind.PACK: r"packs/[0-9a-f]{64}",
    Kind.MANIFEST: rf"manifests/{_COMPONENT}/{_COMPONENT}/(?:0|[1-9][0-9]?)",
    Kind.PROFILE: rf"profiles/{_COMPONENT}/{_COMPONENT}/{STAMPED}",
    Kind.PRELUDE: rf"preludes/{_COMPONENT}/{_COMPONENT}",
    Kind.LEASE: rf"leases/{_COMPONENT}/{_COMPONENT}/[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}",
    Kind.CLAIM: rf"claims/{_COMPONENT}/{_COMPONENT}",
    Kind.CONDEMNED: rf"condemned/{STAMPED}",
}
_KINDS = {kind.value: kind for kind in Kind}


def component(text: str) -> str:
    """Return `text` if it can stand between two slashes everywhere, else a name made of its digest."""
    return text if _PLAIN.match(text) else f"~{digest_of(text.encode(errors='surrogateescape'))[:40]}"


def printable(text: str) -> str:
    """Return text from the bucket as a terminal may be shown it: without what steers one."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


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


def kind_of(name: str) -> Kind | None:
    """Return of which kind the object of that name is, or None when none of ours has such a name."""
    kind = _KINDS.get(name.partition("/")[0])
    # Compiled when it is first looked for: every start of a job imports this.
    return kind if kind and re.fullmatch(_PATTERNS[kind], name) else None


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


def view_name(job: str, run: str) -> str:
    """Return the name, in the disk tier, of what a pinned run sees on this machine."""
    return f"views/{digest_of(f'{job} {run}'.encode())}"


def agreed_view_name(data: bytes) -> str:
    """Return the name, in the disk tier, of what the ranks of several machines agreed to see."""
    return f"views/{digest_of(data)}"


def lease_name(prefix: str, now: float) -> str:
    """Return the name of the object that says of a profile, by its prefix, that it was used at `now`."""
    return prefix.replace("profiles/", "leases/", 1) + time.strftime("%Y-%m-%d", time.gmtime(now))


def profile_prefix(job: str, platform: str) -> str:
    """Return what the names of all segments of a job's profile begin with."""
    return f"profiles/{component(job)}/{platform}/"
