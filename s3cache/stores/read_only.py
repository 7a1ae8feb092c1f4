"""A store that refuses to be written."""

from s3cache.errors import Forbidden
from s3cache.stores.base import ObjectStore
from s3cache.stores.wrapper import WrapperStore


class ReadOnlyStore(WrapperStore):
    """Reads from `inner`; every write raises Forbidden, which says `why`."""

    def __init__(self, inner: ObjectStore, why: str) -> None:
        super().__init__(inner)
        self._why = why

    async def create(self, name: str, data: bytes) -> bool:
        """Raise Forbidden."""
        raise Forbidden(self._why)

    async def delete(self, name: str) -> None:
        """Raise Forbidden."""
        raise Forbidden(self._why)
