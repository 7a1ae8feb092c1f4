"""A store that refuses to be written."""

from s3cache.errors import Forbidden
from s3cache.stores.wrapper import WrapperStore


class ReadOnlyStore(WrapperStore):
    """Reads from `inner`; every write raises Forbidden."""

    async def create(self, name: str, data: bytes) -> bool:
        """Raise Forbidden."""
        raise Forbidden("S3CACHE_MODE is read-only")

    async def delete(self, name: str) -> None:
        """Raise Forbidden."""
        raise Forbidden("S3CACHE_MODE is read-only")
