"""The base of stores that add one behaviour to another store."""

from collections.abc import AsyncIterator

from s3cache.stores.base import Listed, ObjectStore


class WrapperStore(ObjectStore):
    """Passes everything on to `inner`."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or what it has of `part`, a range of bytes. Raises ObjectAbsent."""
        return await self.inner.get(name, part)

    async def create(self, name: str, data: bytes) -> bool:
        """Create an object; return False when there is one already."""
        return await self.inner.create(name, data)

    def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield, sorted, the objects whose names begin with `prefix`."""
        return self.inner.list(prefix)

    async def delete(self, name: str) -> None:
        """Delete an object."""
        await self.inner.delete(name)
