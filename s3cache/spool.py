"""The spool: results on their way to the bucket, one file each, safe against a death at any moment.

<directory>/<time>-<pid>-<count>.put     32 bytes BLAKE3 of the rest, then the result
"""

import errno
import itertools
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec
from blake3 import blake3

from s3cache import folders
from s3cache.decoding import decode
from s3cache.digest import DIGEST_BYTES
from s3cache.errors import Corrupt, DiskFull, DiskTierError
from s3cache.folders import Access
from s3cache.manifest import Result

logger = logging.getLogger(__name__)

_SUFFIX = ".put"
_ABANDONED_SECONDS = 3600.0
_RECOUNT_SECONDS = 5.0


class Put(msgspec.Struct, frozen=True):
    """A result that is to be stored, and the run and job that made it."""

    result: Result
    job: str
    run: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Put)


def decode_put(data: bytes) -> Put:
    """Return the result in what a file of the spool holds. Raises Corrupt when it is damaged."""
    body = memoryview(data)[DIGEST_BYTES:]
    if blake3(body).digest() != data[:DIGEST_BYTES]:
        raise Corrupt("it does not match its digest")
    return decode(body, _decoder, "a result")


class Spool:
    """Keeps at most `limit` bytes of results until they are stored."""

    def __init__(self, directory: Path, limit: int, access: Access = folders.OWNER) -> None:
        self._directory = directory
        self._access = access
        self._limit = limit
        self._counter = itertools.count()
        self._used = 0
        self._added: set[bytes] = set()
        self._counted_at = -_RECOUNT_SECONDS

    def add(self, put: Put) -> bool:
        """Write a result down; it survives this process. Return False when it was added here before.

        Raises DiskFull when the spool or the disk has no room, DiskTierError when it cannot be written.
        """
        data = _encoder.encode(put)
        digest = blake3(data).digest()
        if digest in self._added:
            return False
        size = DIGEST_BYTES + len(data)
        if not self._has_room(size):
            raise DiskFull(
                f"{self._limit} bytes, a quarter of S3CACHE_DISK_LIMIT, wait in {self._directory} "
                "to be stored; check that the bucket can be written"
            )
        # The job waits for this, thousands of times: without pathlib it takes half as long.
        path = f"{self._directory}/{time.time_ns()}-{os.getpid()}-{next(self._counter)}"
        incoming = f"{path}.incoming"
        try:
            self._write(incoming, [digest, data])
            os.rename(incoming, f"{path}{_SUFFIX}")  # noqa: PTH104
            self._used += size
            self._added.add(digest)
            return True
        except OSError as error:
            with suppress(OSError):
                os.unlink(incoming)  # noqa: PTH108
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"no space left in {self._directory}; make room or set S3CACHE_DIR"
                ) from error
            raise DiskTierError(
                f"cannot write {self._directory}: {error.strerror}; set S3CACHE_DIR"
            ) from error

    def pending(self) -> list[Path]:
        """Return the files of results that wait, oldest first."""
        try:
            files = sorted(self._directory.iterdir())
        except OSError:
            return []
        for path in files:
            if path.suffix != _SUFFIX and _age(path) > _ABANDONED_SECONDS:
                self.discard(path)
        return [path for path in files if path.suffix == _SUFFIX]

    def load(self, path: Path) -> Put | None:
        """Return the result in a file; None, and the file is gone, when it is damaged."""
        try:
            with os.fdopen(folders.open_to_read(path), "rb") as file:
                if os.fstat(file.fileno()).st_size > self._limit:
                    raise Corrupt("it is larger than the spool")
                return decode_put(file.read())
        except FileNotFoundError:
            return None
        except (OSError, Corrupt) as error:
            logger.warning("%s cannot be read: %s", path.name, error)
        logger.warning("%s is damaged; what it held is compiled again when it is needed", path.name)
        self.discard(path)
        return None

    def discard(self, path: Path) -> None:
        """Remove a file."""
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _write(self, path: str, parts: list[bytes]) -> None:
        try:
            file = folders.create(path, self._access)
        except FileNotFoundError:
            folders.make(self._directory, self._access)
            file = folders.create(path, self._access)
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[os.write(file, left) :]
        finally:
            os.close(file)

    def _has_room(self, size: int) -> bool:
        # To count is to look at every file that waits, and there may be thousands.
        if self._used + size > self._limit or time.monotonic() - self._counted_at > _RECOUNT_SECONDS:
            self._used = self._bytes()
            self._counted_at = time.monotonic()
        return self._used + size <= self._limit

    def _bytes(self) -> int:
        total = 0
        with suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                # The agent may discard it meanwhile.
                with suppress(OSError):
                    total += entry.stat().st_size
        return total


def _age(path: Path) -> float:
    with suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0
