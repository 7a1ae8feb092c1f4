"""Folders and files that nobody else may write, unless a group is to share them.

A link is never followed below the folder that S3CACHE_DIR names: only a regular file is read.
"""

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from s3cache.errors import DiskTierError

_GROUP_WRITES = 0o020
_OTHERS_WRITE = 0o002


class Access(NamedTuple):
    """The modes of folders and of files."""

    folder: int
    file: int


OWNER = Access(0o700, 0o600)
"""One user."""
GROUP = Access(0o2770, 0o660)
"""All users of the group that owns the folder, as a pod's fsGroup; what is made in it is that group's."""


def secure(folder: Path, access: Access) -> None:
    """Make a folder if there is none.

    Raises DiskTierError when somebody may write there who should not, OSError when it cannot be made.
    """
    make(folder, access)
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if mode & _OTHERS_WRITE:
        wrong = f"everybody may write there (mode {mode:04o})"
        remedy = f"chmod o-w {folder}, or set S3CACHE_DIR to a folder of your own, as one in it"
    elif access is GROUP:
        if status.st_uid == os.geteuid() or status.st_gid in {os.getegid(), *os.getgroups()}:
            return
        wrong = (
            f"it belongs to user {status.st_uid} and group {status.st_gid}, of which this process is none"
        )
        remedy = "set S3CACHE_DIR to a folder of a group of this process"
    elif status.st_uid != os.geteuid():
        wrong = f"it belongs to user {status.st_uid}"
        remedy = "set S3CACHE_DIR to a folder of your own, or S3CACHE_SHARED_GROUP=1 if a group shares it"
    elif mode & _GROUP_WRITES:
        wrong = f"its group may write there (mode {mode:04o})"
        remedy = f"chmod g-w {folder}, or set S3CACHE_SHARED_GROUP=1 if the group shares it"
    else:
        return
    raise DiskTierError(f"{folder} is not used, since results are code: {wrong}; {remedy}")


def make(folder: str | Path, access: Access) -> None:
    """Make a folder, and those above it, unless they are there. Raises OSError when it cannot be made."""
    try:
        _make_one(folder, access)
    except FileNotFoundError:
        above = os.path.dirname(folder)  # noqa: PTH120
        if above in ("", folder):
            raise
        make(above, access)
        _make_one(folder, access)


def _make_one(folder: str | Path, access: Access) -> None:
    try:
        os.mkdir(folder, access.folder)  # noqa: PTH102
    except FileExistsError:
        return
    if access is GROUP:
        # Whatever the umask is.
        os.chmod(folder, access.folder)  # noqa: PTH101


def open_to_read(path: str | Path) -> int:
    """Return the descriptor of a regular file. Raises OSError where there is none, a link included."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def create(path: str | Path, access: Access) -> int:
    """Return the descriptor of a file that was not there. Raises OSError when it was, be it as a link."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, access.file)
    if access is GROUP:
        os.fchmod(file, access.file)
    return file
