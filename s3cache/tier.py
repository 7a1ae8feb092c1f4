"""The disk tier: a local LRU store that all processes of one user on a machine share.

    <root>/objects/<name>     32 bytes BLAKE3 of the content, then the content; mtime is the last use
    <root>/quarantine/        what did not match its digest, until its room is needed
    <root>/incoming/          what is being written
    <root>/usage              bytes in objects/ and quarantine/, and whether that can be trusted
    <root>/lock               held while any of these changes

An object appears by one rename, so a process may die at any moment. Reading takes no lock: a file
that is evicted while it is read stays readable until it is closed.
"""

import errno
import itertools
import logging
import os
import shutil
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from s3cache import folders
from s3cache.digest import DIGEST_BYTES
from s3cache.errors import DiskFull, DiskTierError
from s3cache.folders import Access
from s3cache.frame import MAX_CONTENT_BYTES
from s3cache.settings import Settings

logger = logging.getLogger(__name__)

FREE_FLOOR_BYTES = 256 << 20
"""What the tier leaves free on its filesystem, or a twentieth of it where that is less."""
_EVICT_TO = 0.95
_QUARANTINE_FILES = 16
_LOCK_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.002
_NO_FLOOR = "too little space would stay free beside"
_USAGE = struct.Struct("<Q?")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def open_tier(settings: Settings) -> "DiskTier":
    """Return the disk tier of these settings.

    Raises DiskTierError when its folder cannot be made or written, or others may write there.
    """
    try:
        for folder in settings.own_folders:
            folders.secure(folder, settings.access)
    except OSError as error:
        raise DiskTierError(
            f"cannot write {settings.directory}: {error.strerror}; set S3CACHE_DIR"
        ) from error
    return DiskTier(settings.tier_directory, settings.disk_limit, settings.access)


class DiskTier:
    """Keeps at most `limit` bytes under `root`; the least recently used object goes first.

    Raises DiskTierError when `root` cannot be made or written, or others may write there.
    """

    def __init__(self, root: Path, limit: int, access: Access = folders.OWNER) -> None:
        self._access = access
        self._objects = root / "objects"
        self._quarantine = root / "quarantine"
        self._incoming = root / "incoming"
        self._usage = root / "usage"
        self._limit = limit
        self._counter = itertools.count()
        self._quarantined = 0
        try:
            for folder in (root, self._objects, self._quarantine, self._incoming):
                folders.secure(folder, access)
            if not os.access(self._objects, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._objects))
        except OSError as error:
            raise DiskTierError(f"cannot write {root}: {error.strerror}; set S3CACHE_DIR") from error
        self._lock_file = root / "lock"

    def read(self, name: str) -> bytes | None:
        """Return an object, or None when there is none whose content matches its digest."""
        try:
            file = folders.open_to_read(f"{self._objects}/{name}")
        except OSError:
            return None
        try:
            digest = os.read(file, DIGEST_BYTES)
            content = _read_rest(file)
            if blake3(content).digest() == digest:
                with suppress(OSError):
                    os.utime(file)
                return content
        except OSError as error:
            logger.warning("%s cannot be read: %s", name, error)
            return None
        finally:
            os.close(file)
        self._put_in_quarantine(name)
        return None

    def digest(self, name: str) -> bytes | None:
        """Return the digest that an object was written with, unread; None when there is no object."""
        with suppress(OSError):
            file = folders.open_to_read(f"{self._objects}/{name}")
            try:
                return os.read(file, DIGEST_BYTES)
            finally:
                os.close(file)
        return None

    def has(self, name: str) -> bool:
        """Return whether there is an object of that name, unread."""
        try:
            return stat.S_ISREG(os.lstat(f"{self._objects}/{name}").st_mode)
        except OSError:
            return False

    def write(self, name: str, content: bytes) -> bool:
        """Add an object; return False when there is one already.

        Raises DiskFull when there is no room, DiskTierError when the folder cannot be written.
        """
        if self.has(name):
            return False
        target = self._objects / name
        size = DIGEST_BYTES + len(content)
        digest = blake3(content).digest()
        incoming = self._incoming / f"{os.getpid()}-{next(self._counter)}-{time.time_ns()}"
        try:
            with self._changing() as used:
                if self.has(name):
                    return False
                self._make_room(used, size)
                with os.fdopen(folders.create(incoming, self._access), "wb") as file:
                    file.write(digest)
                    file.write(content)
                folders.make(target.parent, self._access)
                incoming.rename(target)
                used.bytes += size
                return True
        finally:
            with suppress(OSError):
                incoming.unlink(missing_ok=True)

    def write_first(self, name: str, content: bytes) -> bytes:
        """Add an object unless there is one, and return what is there. Raises as `write` does."""
        self.write(name, content)
        found = self.read(name)
        return content if found is None else found

    def remove(self, name: str) -> None:
        """Remove an object; one that is absent is no error. Raises as `write` does."""
        with self._changing() as used:
            used.bytes -= self._unlink(self._objects / name)

    def take_quarantined(self) -> int:
        """Return how many objects went into quarantine since this was last asked."""
        quarantined, self._quarantined = self._quarantined, 0
        return quarantined

    def names(self, prefix: str = "") -> list[str]:
        """Return, sorted, the names that begin with `prefix`."""
        root = os.fspath(self._objects)
        return sorted(
            name
            for path, _ in _files(self._objects / prefix.rpartition("/")[0])
            if (name := os.fspath(path)[len(root) + 1 :]).startswith(prefix)
        )

    @contextmanager
    def _changing(self) -> Iterator["_Used"]:
        # The usage file says "not to be trusted" from the first change to the last: whoever comes
        # after a process that died in between counts again and sweeps what that one was writing.
        # Imported here: a job's process that only reads does without it, and starts sooner.
        from filelock import FileLock, Timeout

        try:
            with FileLock(
                self._lock_file,
                timeout=_LOCK_SECONDS,
                mode=self._access.file,
                poll_interval=_LOCK_POLL_SECONDS,
            ):
                used = self._read_usage()
                self._write_usage(0, trusted=False)
                try:
                    yield used
                finally:
                    self._write_usage(max(used.bytes, 0), trusted=True)
        except Timeout as error:
            raise DiskTierError(f"the lock of {self._objects} was not free in {_LOCK_SECONDS} s") from error
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise DiskFull(f"no space left in {self._objects}; make room or set S3CACHE_DIR") from error
            raise DiskTierError(f"cannot write {self._objects}: {error}; set S3CACHE_DIR") from error

    def _read_usage(self) -> "_Used":
        with suppress(OSError, struct.error):
            used, trusted = _USAGE.unpack(self._usage.read_bytes())
            if trusted:
                return _Used(used)
        self._usage.unlink(missing_ok=True)
        for path, _ in _files(self._incoming):
            path.unlink(missing_ok=True)
        return _Used(self._count())

    def _write_usage(self, used: int, *, trusted: bool) -> None:
        # In place: a file that is truncated and written anew is flushed to the disk by ext4.
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self._usage, flags, self._access.file)
        try:
            if self._access is folders.GROUP:
                with suppress(PermissionError):
                    os.fchmod(file, self._access.file)
            os.pwrite(file, _USAGE.pack(used, trusted), 0)
        finally:
            os.close(file)

    def _count(self) -> int:
        held = itertools.chain(_files(self._objects), _files(self._quarantine))
        return sum(status.st_size for _, status in held)

    def _make_room(self, used: "_Used", size: int) -> None:
        if size > self._limit:
            raise DiskFull(f"an entry of {size} bytes is larger than S3CACHE_DISK_LIMIT ({self._limit})")
        missing = self._missing(used, size)
        if missing <= 0:
            return
        if missing > used.bytes:
            # Nothing that lies here would make the room.
            raise DiskFull(f"{_NO_FLOOR} {self._objects}; make room or set S3CACHE_DIR")
        target = max(missing, int(used.bytes + size - self._limit * _EVICT_TO))
        by_use = sorted(_files(self._objects), key=lambda item: item[1].st_mtime_ns)
        for path, _ in itertools.chain(_files(self._quarantine), by_use):
            freed = self._unlink(path)
            used.bytes -= freed
            target -= freed
            if target <= 0:
                break
        if self._missing(used, size) > 0:
            raise DiskFull(f"{_NO_FLOOR} {self._objects}; make room or set S3CACHE_DIR")

    def _missing(self, used: "_Used", size: int) -> int:
        disk = shutil.disk_usage(self._objects)
        floor = min(FREE_FLOOR_BYTES, disk.total // 20)
        return max(used.bytes + size - self._limit, floor + size - disk.free)

    def _unlink(self, path: Path) -> int:
        try:
            size = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        if path.parent not in (self._objects, self._quarantine):
            with suppress(OSError):
                path.parent.rmdir()
        return size

    def _put_in_quarantine(self, name: str) -> None:
        logger.warning("%s does not match its digest; it is put in quarantine", name)
        self._quarantined += 1
        with suppress(DiskTierError), self._changing() as used:
            path = self._objects / name
            path.rename(self._quarantine / f"{time.time_ns()}-{path.name}")
            for old in sorted(self._quarantine.iterdir())[:-_QUARANTINE_FILES]:
                old.unlink()
            # Its size may be another than the one that was added.
            used.bytes = self._count()


class _Used:
    """How many bytes lie in objects/ and quarantine/."""

    def __init__(self, used: int) -> None:
        self.bytes = used


def _read_rest(file: int) -> bytes:
    size = min(os.fstat(file).st_size, DIGEST_BYTES + MAX_CONTENT_BYTES) - DIGEST_BYTES
    content = os.read(file, max(size, 0))
    while len(content) < size and (more := os.read(file, size - len(content))):
        content += more
    return content


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                yield path, path.lstat()
