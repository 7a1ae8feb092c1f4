"""The protocol of everything that keeps named, immutable objects."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator


class ObjectStore(ABC):
    """Keeps objects under names. An object is created once and never overwritten."""

    @abstractmethod
    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or what it has of `part`, a range of bytes. Raises ObjectAbsent."""

    @abstractmethod
    async def create(self, name: str, data: bytes) -> bool:
        """Create an object; return False, and leave it alone, when there is one already."""

    @abstractmethod
    def list(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names that begin with `prefix`; those of one folder come sorted."""

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Delete an object; one that is absent is no error."""
