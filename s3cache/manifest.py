"""Manifests: what one compiler result consists of, where its bytes lie, what it requires. Pure."""

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated

import msgspec

from s3cache import envelope, frame, names
from s3cache.decoding import decode as decode_body
from s3cache.digest import DIGEST_BYTES, digest_of, raw_digest_of
from s3cache.errors import Corrupt, InvalidName, Removed, TooLarge, Untrusted
from s3cache.keyring import Keyring
from s3cache.namespaces import Rule, rule_of

MAX_SLOTS = 64
"""How many variants a key may have."""
TOMBSTONE = b""
"""What lies in a slot whose result was removed, so that the slots above it are found."""
INLINE_CONTENT_BYTES = 64 << 10
"""What the members that lie in a manifest may have together."""
INLINE_BYTES = 1 << 10
"""Members that compress to no more than this together lie in the manifest, and so in segments."""
MANIFEST_BYTES = 1 << 20
"""What a manifest may be."""
MEMBERS = 4096
"""How many members a result may have."""
_MEMBER_BYTES = 128
"""What a manifest says of a member and its frame beside its name: more than any."""
_CHARACTER_BYTES = 4
_ROOM_BYTES = 64 << 10
"""What is left for the rest: inline members, who wrote it, the envelope."""


class Result(msgspec.Struct, frozen=True):
    """What a compiler made. Members that are on demand come only to who names them."""

    namespace: str
    key: str
    members: dict[str, bytes]
    variant: str = ""
    requires: dict[str, str] = {}
    cost_seconds: float = 0.0
    on_demand: frozenset[str] = frozenset()


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a frame lies: in which pack, the bytes it has there, and those it grows to."""

    pack: bytes
    offset: int
    length: int
    size: int

    @property
    def name(self) -> str:
        """The name that the frame has in the disk tier."""
        return names.frame_name(self.pack, self.offset)


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One named part of a result: its digest, its size in bytes, and its own frame when it is inline.

    Otherwise it starts at byte `start` of what the manifest's frame `frame` grows to.
    """

    name: str
    digest: bytes
    size: int
    on_demand: bool = False
    inline: bytes | None = None
    frame: int = 0
    start: int = 0


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One compiler result under one key."""

    namespace: str
    key: str
    members: Annotated[list[Member], msgspec.Meta(max_length=MEMBERS)]
    frames: Annotated[list[Place], msgspec.Meta(max_length=MEMBERS)] = []
    variant: str = ""
    requires: dict[str, str] = {}
    cost_seconds: float = 0.0
    writer: dict[str, str] = {}
    signer: str = ""
    """The id of the key that signed it, wherever it is copied to; nothing: nobody did."""

    def stands_for(self, variant: str, requires: Mapping[str, str], members: Iterable[str]) -> bool:
        """Return whether it is of these guards, for these machines, and has these members at least."""
        has = {member.name for member in self.members}
        return (self.variant, self.requires) == (variant, requires) and has.issuperset(members)

    def wanted(self, members: Collection[str] | None) -> list[Member]:
        """Return the members of these names; without names, those that are not on demand."""
        if members is None:
            return [member for member in self.members if not member.on_demand]
        return [member for member in self.members if member.name in members]

    def places(self, members: Collection[str] | None) -> list[Place]:
        """Return the frames that hold `wanted(members)`."""
        held = {member.frame for member in self.wanted(members) if member.inline is None}
        return [self.frames[number] for number in sorted(held)]


class Entry(msgspec.Struct, frozen=True):
    """A result with the content of its members, of those that were wanted."""

    namespace: str
    key: str
    slot: int
    variant: str
    requires: dict[str, str]
    members: dict[str, bytes]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)


def encode(manifest: Manifest, keyring: Keyring) -> bytes:
    """Return the bytes of a manifest object, signed if the keyring signs."""
    signed = msgspec.structs.replace(manifest, signer=keyring.signer)
    return envelope.seal("manifest", _encoder.encode(signed), keyring)


def decode(data: bytes, keyring: Keyring) -> Manifest:
    """Return the manifest in `data`.

    Raises Removed when it is a tombstone, Untrusted when nobody whom the keyring trusts has signed it,
    Corrupt when it is damaged or names what it may not.
    """
    if data == TOMBSTONE:
        raise Removed("what was there was removed")
    opened = envelope.unseal("manifest", data, keyring)
    manifest = decode_body(opened.body, _decoder, "a manifest")
    if manifest.signer != opened.key_id:
        raise Untrusted("it names another signer than it has")
    return check(manifest)


def of_key(data: bytes, namespace: str, key: str, keyring: Keyring) -> Manifest:
    """Return the manifest in `data`. Raises as `decode` does, and Corrupt when it is of another key."""
    manifest = decode(data, keyring)
    if (manifest.namespace, manifest.key) != (namespace, key):
        raise Corrupt(f"a manifest of {manifest.namespace} {manifest.key} lies under another key")
    return manifest


def check(manifest: Manifest) -> Manifest:
    """Return `manifest`. Raises Corrupt when it names what it may not."""
    try:
        names.check_namespace(manifest.namespace)
        for place in manifest.frames:
            check_place(place)
        for member in manifest.members:
            names.check_member(member.name)
            _check_member(member, manifest.frames)
    except InvalidName as error:
        raise Corrupt(str(error)) from error
    return manifest


def check_result(result: Result) -> None:
    """Raise InvalidName when a name cannot be used, TooLarge when no reader would take it."""
    names.check_namespace(result.namespace)
    for name, content in result.members.items():
        names.check_member(name)
        if len(content) > frame.MAX_CONTENT_BYTES:
            raise TooLarge(f"{name} has {len(content)} bytes, at most {frame.MAX_CONTENT_BYTES} are kept")
    texts = [result.key, result.variant, *result.members, *result.requires, *result.requires.values()]
    stated = _CHARACTER_BYTES * sum(map(len, texts)) + _MEMBER_BYTES * len(result.members)
    if len(result.members) > MEMBERS or stated > MANIFEST_BYTES - _ROOM_BYTES:
        raise TooLarge(f"{len(result.members)} members, with names of {stated} bytes, are too many to keep")


def variant_of(result: Result) -> str:
    """Return the variant of a result.

    Where all values of a key are kept, it is the digest of the members unless one is given.
    """
    if result.variant or rule_of(result.namespace) is Rule.FIRST:
        return result.variant
    said = (f"{name} {digest_of(content)}" for name, content in sorted(result.members.items()))
    return digest_of("\n".join(said).encode())


def _check_member(member: Member, frames: list[Place]) -> None:
    if len(member.digest) != DIGEST_BYTES:
        raise Corrupt(f"member {member.name} has no digest")
    if member.inline is not None:
        room = INLINE_CONTENT_BYTES
    elif 0 <= member.frame < len(frames) and member.start >= 0:
        room = frames[member.frame].size - member.start
    else:
        raise Corrupt(f"member {member.name} lies in no frame")
    if not 0 <= member.size <= room:
        raise Corrupt(f"member {member.name} states {member.size} bytes, there are {room}")


def check_place(place: Place) -> None:
    """Raise Corrupt when there cannot be such a frame."""
    if len(place.pack) != DIGEST_BYTES:
        raise Corrupt("a pack is named by 32 bytes")
    if place.offset < 0 or not 0 < place.length <= frame.MAX_CONTENT_BYTES:
        raise Corrupt(f"there is no frame at {place.offset} of {place.length} bytes")
    if not 0 <= place.size <= frame.MAX_CONTENT_BYTES:
        raise Corrupt(f"a frame states {place.size} bytes, at most {frame.MAX_CONTENT_BYTES} are taken")


def inline(result: Result, writer: Mapping[str, str]) -> Manifest | None:
    """Return the manifest of a result that is small enough to lie in it, or None.

    Raises InvalidName when the namespace or a member's name cannot be used.
    """
    # What is on demand would come with every segment.
    if not result.on_demand.isdisjoint(result.members):
        return None
    if sum(map(len, result.members.values())) > INLINE_CONTENT_BYTES:
        return None
    frames = {name: frame.compress(content) for name, content in result.members.items()}
    if sum(map(len, frames.values())) > INLINE_BYTES:
        return None
    members = [
        Member(name, raw_digest_of(content), len(content), inline=frames[name])
        for name, content in result.members.items()
    ]
    return build(result, members, [], writer)


def build(
    result: Result, members: list[Member], frames: list[Place], writer: Mapping[str, str]
) -> Manifest:
    """Return the manifest of a result whose members lie as given.

    Raises InvalidName when the namespace or a member's name cannot be used.
    """
    check_result(result)
    return Manifest(
        namespace=result.namespace,
        key=result.key,
        members=members,
        frames=frames,
        variant=variant_of(result),
        requires=dict(result.requires),
        cost_seconds=result.cost_seconds,
        writer=dict(writer),
    )


def content_of(member: Member, grown: bytes | None) -> bytes:
    """Return a member's content; `grown` is what its frame grows to, None when it is inline.

    Raises Corrupt when it does not match its digest.
    """
    if member.inline is not None:
        content = frame.decompress(member.inline, limit=member.size)
    else:
        assert grown is not None
        content = grown[member.start : member.start + member.size]
    if raw_digest_of(content) != member.digest:
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
        members=dict(contents),
    )
