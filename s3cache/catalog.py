"""Catalogs: the references of a segment, found by name without decoding the others. Pure.

8 bytes         how many there are
16 bytes each   the short digest of a manifest's name, where its reference starts, how long it is;
                sorted
the references, in the order of use

All that lies in an envelope of its own, since processes read it from the disk without its segment.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress

import msgspec

from s3cache import envelope, manifest, names
from s3cache.decoding import decode
from s3cache.digest import raw_digest_of
from s3cache.errors import Corrupt, Untrusted
from s3cache.keyring import Keyring
from s3cache.manifest import Manifest, Place


class Reference(msgspec.Struct, frozen=True, omit_defaults=True):
    """One manifest that a start used, and the members on demand that it asked for."""

    slot: int
    manifest: Manifest
    opened: list[str] = []

    @property
    def name(self) -> str:
        """The name of the manifest's object."""
        return names.manifest_name(self.manifest.namespace, self.manifest.key, self.slot)

    @property
    def read(self) -> list[str]:
        """The names of the members that a start reads."""
        return [m.name for m in self.manifest.members if not m.on_demand or m.name in self.opened]

    @property
    def places(self) -> list[Place]:
        """The frames that a start reads."""
        return self.manifest.places(self.read)


_HEADER = struct.Struct("<Q")
_ROW = struct.Struct("<8sII")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Reference)


def build(references: Sequence[Reference], keyring: Keyring) -> bytes:
    """Return the catalog of references, signed if the keyring signs."""
    bodies = [_encoder.encode(reference) for reference in references]
    rows = []
    start = _HEADER.size + len(bodies) * _ROW.size
    for reference, body in zip(references, bodies, strict=True):
        rows.append(_ROW.pack(short_digest(reference.name), start, len(body)))
        start += len(body)
    return envelope.seal("catalog", b"".join([_HEADER.pack(len(rows)), *sorted(rows), *bodies]), keyring)


class Catalog(Sequence[bytes]):
    """Finds references in a catalog's bytes; as a sequence, it is the short digests of their names.

    One check covers them all; a reference to what a key signed that is not trusted is not found.
    Raises Untrusted when nobody whom the keyring trusts has signed the catalog, Corrupt when the bytes are
    none, or state more of them than there are.
    """

    def __init__(self, data: bytes, keyring: Keyring) -> None:
        self._data = data = envelope.unseal("catalog", data, keyring).body
        self._keyring = keyring
        if len(data) < _HEADER.size:
            raise Corrupt("a catalog has a header")
        self._length: int = _HEADER.unpack_from(data)[0]
        end = _HEADER.size + self._length * _ROW.size
        if end > len(data):
            raise Corrupt(f"a catalog of {len(data)} bytes states {self._length} rows")
        rows = memoryview(data)[_HEADER.size : end]
        if sum(length for _, _, length in _ROW.iter_unpack(rows)) > len(data):
            raise Corrupt(f"a catalog of {len(data)} bytes states more of them than it has")

    def find(self, name: str) -> Reference | None:
        """Return the reference to the manifest of that name.

        Raises Untrusted when the key that signed the manifest is not trusted, Corrupt when it is damaged.
        """
        digest = short_digest(name)
        number = bisect_left(self, digest)
        if number == len(self) or self[number] != digest:
            return None
        found = self._reference(number)
        return found if found.name == name else None

    def references(self) -> Iterator[Reference]:
        """Yield all that are whole and trusted, in the order of use."""
        for number in sorted(range(len(self)), key=lambda number: self._row(number)[1]):
            with suppress(Corrupt):
                yield self._reference(number)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> bytes:  # type: ignore[override]
        if not 0 <= number < self._length:
            raise IndexError(number)
        digest: bytes = self._row(number)[0]
        return digest

    def _reference(self, number: int) -> Reference:
        _, start, length = self._row(number)
        reference = decode(memoryview(self._data)[start : start + length], _decoder, "a reference")
        if not self._keyring.trusts(reference.manifest.signer):
            raise Untrusted(f"{reference.name} was signed by a key that is not trusted")
        manifest.check(reference.manifest)
        return reference

    def _row(self, number: int) -> tuple[bytes, int, int]:
        return _ROW.unpack_from(self._data, _HEADER.size + number * _ROW.size)


def short_digest(name: str) -> bytes:
    """Return what stands for a manifest's name in a catalog: 8 bytes."""
    return raw_digest_of(name.encode())[:8]
