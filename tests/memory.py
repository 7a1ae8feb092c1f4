"""A store in memory: the model that the others are tested against."""

import time
from collections.abc import AsyncIterator, Callable

from s3cache.errors import ObjectAbsent
from s3cache.stores.base import Listed, ObjectStore


class MemoryStore(ObjectStore):
    """Keeps objects in a dictionary, and when each was created, by `clock`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.objects: dict[str, bytes] = {}
        self._clock = clock
        self._created: dict[str, float] = {}

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
        self._created[name] = self._clock()
        return True

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield, sorted, the objects whose names begin with `prefix`."""
        for name, data in sorted(self.objects.items()):
            if name.startswith(prefix):
                yield Listed(name, len(data), self._created.get(name, 0.0))

    async def delete(self, name: str) -> None:
        """Delete an object."""
        self.objects.pop(name, None)
