"""The base of stores that add one behaviour to another store."""

from collections.abc import AsyncIterator

from s3cache.stores.base import ObjectStore


class WrapperStore(ObjectStore):
    """Passes everything on to `inner`."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    async def get(self, name: str) -> bytes:
        """Return an object. Raises ObjectAbsent when there is none of that name."""
        return await self.inner.get(name)

    async def create(self, name: str, data: bytes) -> bool:
        """Create an object; return False when there is one already."""
        return await self.inner.create(name, data)

    def list(self, prefix: str) -> AsyncIterator[str]:
        """Yield, sorted, the names that begin with `prefix`."""
        return self.inner.list(prefix)

    async def delete(self, name: str) -> None:
        """Delete an object."""
        await self.inner.delete(name)
