"""The one gate for names: what may be a namespace, a key or a member, and where objects lie.

blobs/<2 hex>/<digest>
manifests/<namespace>/<key>/<slot>
profiles/<job>/<platform>/<segment>
"""

import re

from s3cache.digest import digest_of
from s3cache.errors import InvalidName

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def component(text: str) -> str:
    """Return `text` if it can stand between two slashes everywhere, else a name made of its digest."""
    return text if _PLAIN.match(text) else f"~{digest_of(text.encode())[:40]}"


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


def check_digest(digest: str) -> str:
    """Return `digest`. Raises InvalidName when it is not 64 hexadecimal digits."""
    if not _DIGEST.match(digest):
        raise InvalidName(f"not a digest: {digest!r}")
    return digest


def blob_name(digest: str) -> str:
    """Return the name of the object that holds a blob."""
    return f"blobs/{digest[:2]}/{digest}"


def manifest_name(namespace: str, key: str, slot: int) -> str:
    """Return the name of the object that holds the manifest in one slot of a key."""
    return f"manifests/{namespace}/{component(key)}/{slot}"


def profile_prefix(job: str, platform: str) -> str:
    """Return what the names of all segments of a job's profile begin with."""
    return f"profiles/{component(job)}/{platform}/"
