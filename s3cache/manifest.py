"""Manifests: what one compiler result consists of and what it requires of a machine. Pure."""

from collections.abc import Mapping

import msgspec

from s3cache import envelope, frame, names
from s3cache.digest import digest_of
from s3cache.errors import Corrupt, InvalidName
from s3cache.namespaces import Rule, rule_of

MAX_SLOTS = 64
"""How many variants a key may have."""
INLINE_CONTENT_BYTES = 64 << 20
"""What an inline member may grow to."""
INLINE_BYTES = 64 << 10
"""Members that compress to no more than this together lie in the manifest: one request, not two."""


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """One named part of a result: its digest, its size in bytes, and its frame when it is inline."""

    name: str
    digest: str
    size: int
    inline: bytes | None = None


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One compiler result under one key."""

    namespace: str
    key: str
    members: list[Member]
    variant: str = ""
    requires: dict[str, str] = {}
    cost_seconds: float = 0.0
    components: list[str] = []
    writer: dict[str, str] = {}

    def is_same_variant(self, other: "Manifest") -> bool:
        """Return whether both are results for the same guards and the same machines."""
        return (self.variant, self.requires) == (other.variant, other.requires)


class Entry(msgspec.Struct, frozen=True):
    """A result with the content of its members."""

    namespace: str
    key: str
    slot: int
    variant: str
    requires: dict[str, str]
    members: dict[str, bytes]


_decoder = msgspec.msgpack.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest object."""
    return envelope.seal(manifest)


def decode(data: bytes) -> Manifest:
    """Return the manifest in `data`. Raises Corrupt when it is damaged or names what it may not."""
    manifest = envelope.unseal(data, _decoder)
    try:
        names.check_namespace(manifest.namespace)
        for member in manifest.members:
            names.check_member(member.name)
            names.check_digest(member.digest)
            if member.inline is not None and member.size > INLINE_CONTENT_BYTES:
                raise Corrupt(f"inline member {member.name} states {member.size} bytes")
    except InvalidName as error:
        raise Corrupt(str(error)) from error
    return manifest


def build(
    namespace: str,
    key: str,
    members: Mapping[str, bytes],
    *,
    variant: str = "",
    requires: Mapping[str, str] | None = None,
    cost_seconds: float = 0.0,
    writer: Mapping[str, str] | None = None,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest of a result and the frames, by digest, that do not fit into it.

    Where all values of a key are kept, the digest of the members is the variant unless one is given.
    Raises InvalidName when the namespace or a member's name cannot be used.
    """
    names.check_namespace(namespace)
    digests = {names.check_member(name): digest_of(content) for name, content in members.items()}
    frames = {digests[name]: frame.compress(content) for name, content in members.items()}
    sizes = map(len, members.values())
    inline = sum(map(len, frames.values())) <= INLINE_BYTES and sum(sizes) <= INLINE_CONTENT_BYTES
    if not variant and rule_of(namespace) is not Rule.FIRST:
        variant = digest_of("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode())
    manifest = Manifest(
        namespace=namespace,
        key=key,
        members=[
            Member(name, digests[name], len(content), frames[digests[name]] if inline else None)
            for name, content in members.items()
        ],
        variant=variant,
        requires=dict(requires or {}),
        cost_seconds=cost_seconds,
        writer=dict(writer or {}),
    )
    return manifest, {} if inline else frames


def open_inline(member: Member) -> bytes:
    """Return the content of an inline member. Raises Corrupt when it does not match its digest."""
    assert member.inline is not None
    content = frame.decompress(member.inline, limit=member.size)
    if digest_of(content) != member.digest:
        raise Corrupt(f"member {member.name} does not match its digest")
    return content


def entry_of(manifest: Manifest, slot: int, contents: Mapping[str, bytes]) -> Entry:
    """Return the entry that a manifest and the contents of its members make."""
    return Entry(
        namespace=manifest.namespace,
        key=manifest.key,
        slot=slot,
        variant=manifest.variant,
        requires=manifest.requires,
        members={member.name: contents[member.name] for member in manifest.members},
    )
