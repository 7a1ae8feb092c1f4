"""A store in memory: the model that the others are tested against."""

from collections.abc import AsyncIterator

from s3cache.errors import ObjectAbsent
from s3cache.stores.base import ObjectStore


class MemoryStore(ObjectStore):
    """Keeps objects in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or what it has of `part`, a range of bytes. Raises ObjectAbsent."""
        try:
            data = self.objects[name]
        except KeyError:
            raise ObjectAbsent(f"{name} is not there") from None
        return data if part is None else data[part.start : part.stop]

    async def create(self, name: str, data: bytes) -> bool:
        """Create an object; return False when there is one already."""
        if name in self.objects:
            return False
        self.objects[name] = data
        return True

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """Yield, sorted, the names that begin with `prefix`."""
        for name in sorted(self.objects):
            if name.startswith(prefix):
                yield name

    async def delete(self, name: str) -> None:
        """Delete an object."""
        self.objects.pop(name, None)
