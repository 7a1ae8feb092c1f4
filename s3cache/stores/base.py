"""The protocol of everything that keeps named, immutable objects."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import NamedTuple


class Listed(NamedTuple):
    """What a listing says of an object: its name, its size in bytes, and when it was created.

    That is by the store's clock, in seconds since 1970.
    """

    name: str
    size: int
    created: float


class ObjectStore(ABC):
    """Keeps objects under names. An object is created once and never overwritten."""

    @abstractmethod
    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or what it has of `part`, a range of bytes. Raises ObjectAbsent."""

    @abstractmethod
    async def create(self, name: str, data: bytes) -> bool:
        """Create an object; return False, and leave it alone, when there is one already."""

    @abstractmethod
    def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield the objects whose names begin with `prefix`; those of one folder come sorted."""

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Delete an object; one that is absent is no error."""
