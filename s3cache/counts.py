"""How far each profile has counted, as this machine has seen it: an older one that is put back is noticed.

    <directory>/<job>/<platform>     the count, in decimal digits; it changes by one rename

It outlives what the disk tier evicts. Who removes the folder forgets.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from s3cache import folders
from s3cache.folders import Access

logger = logging.getLogger(__name__)

_DIGITS = 20


class HighestCounts:
    """The highest count that was seen of each profile, by the prefix of its segments."""

    def __init__(self, directory: Path, access: Access = folders.OWNER) -> None:
        self._directory = directory
        self._access = access

    def of(self, prefix: str) -> int:
        """Return the highest count that was noted; 0 when none was."""
        with suppress(OSError, ValueError):
            file = folders.open_to_read(self.path(prefix))
            try:
                return int(os.read(file, _DIGITS))
            finally:
                os.close(file)
        return 0

    def note(self, prefix: str, count: int) -> None:
        """Remember a count, if it is higher."""
        if count <= self.of(prefix):
            return
        path = self.path(prefix)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns()}")
        try:
            folders.make(path.parent, self._access)
            file = folders.create(unfinished, self._access)
            try:
                os.write(file, b"%d" % count)
            finally:
                os.close(file)
            unfinished.rename(path)
        except OSError as error:
            logger.warning("how far %s has counted is not remembered: %s", prefix, error)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def path(self, prefix: str) -> Path:
        """Return the file that has the highest count of a profile."""
        return self._directory / prefix.strip("/")
