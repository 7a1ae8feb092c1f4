"""Entries straight from the disk tier: synchronous, and never anything but the disk."""

from s3cache import manifest as manifests
from s3cache import names
from s3cache.errors import Corrupt
from s3cache.manifest import Entry, Manifest, Member
from s3cache.tier import DiskTier


def read_manifest(tier: DiskTier, namespace: str, key: str, slot: int) -> Manifest | None:
    """Return the manifest in a slot, or None when the tier has none that is that key's."""
    data = tier.read(names.manifest_name(namespace, key, slot))
    if data is None:
        return None
    try:
        manifest = manifests.decode(data)
    except Corrupt:
        return None
    return manifest if (manifest.namespace, manifest.key) == (namespace, key) else None


def read_entry(tier: DiskTier, manifest: Manifest, slot: int) -> Entry | None:
    """Return a manifest's entry, or None when the tier lacks one of its members."""
    contents: dict[str, bytes] = {}
    for member in manifest.members:
        content = _read_member(tier, member)
        if content is None:
            return None
        contents[member.name] = content
    return manifests.entry_of(manifest, slot, contents)


def _read_member(tier: DiskTier, member: Member) -> bytes | None:
    if member.inline is None:
        return tier.read(names.blob_name(member.digest), member.digest)
    try:
        return manifests.open_inline(member)
    except Corrupt:
        return None
