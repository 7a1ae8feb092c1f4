"""Views: which results a pinned run sees. Pure.

8 bytes each   the short digest of a manifest's name
"""

from collections.abc import Iterable
from typing import Self

import msgspec

from s3cache.catalog import Reference, short_digest
from s3cache.errors import Corrupt

_MARK_BYTES = 8


class View(msgspec.Struct, frozen=True):
    """What is seen; all else is a miss."""

    marks: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, references: Iterable[Reference]) -> Self:
        """Return the view of these."""
        return cls(frozenset(short_digest(each.name) for each in references))

    def sees(self, name: str) -> bool:
        """Return whether the manifest of that name is seen."""
        return short_digest(name) in self.marks

    def __len__(self) -> int:
        return len(self.marks)

    def __and__(self, other: "View") -> "View":
        """Return what both see."""
        return View(self.marks & other.marks)


def encode(view: View) -> bytes:
    """Return the bytes of a view: equal views, equal bytes."""
    return b"".join(sorted(view.marks))


def decode(data: bytes) -> View:
    """Return the view in `data`. Raises Corrupt when it is none."""
    if len(data) % _MARK_BYTES:
        raise Corrupt(f"a view is of {_MARK_BYTES} bytes for each entry, not of {len(data)} in all")
    return View(frozenset(data[at : at + _MARK_BYTES] for at in range(0, len(data), _MARK_BYTES)))
