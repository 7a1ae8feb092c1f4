"""Kernels that the NVIDIA driver compiles when they are first launched, as those of cuDNN's attention.

Libraries generate some while a job runs, and come without binaries of others. What the driver makes of one
it keeps in a file, named by a digest of all that went into it. It looks for the file when it needs it, so
what lies there by then is found, whatever the folder's index says; a damaged one is compiled again.
"""

import atexit
import logging
import os
import re
import struct
from contextlib import suppress
from functools import partial
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from pathlib import Path
from types import ModuleType

from s3cache import folders
from s3cache.client import Client
from s3cache.integration.hooks import guarded, require
from s3cache.integration.placing import place
from s3cache.integration.pytorch.switch import active_client

logger = logging.getLogger(__name__)

NAMESPACE = "driver-kernel"
_MEMBER = "kernel"
_MOST = 128
"""So many of a job's are used, the newest. The working directory is in what cuDNN generates: where each
start has another one, none is found again, and the profile forgets what is not used."""
_MODE = 0o644
"""The driver's own."""
_OURS = 0
"""The time of a file that came from a bucket: to store it again would be to vouch for what others made."""
_FILES = "[0-9a-f]/[0-9a-f]/" + "[0-9a-f]" * 14
_DRIVER = re.compile(r"/libcuda\.so\.([0-9]{3,}(?:\.[0-9]+)+)$", re.MULTILINE)
_HEADER = struct.Struct("<IQQQ")
"""Version, size of what it is looked up by, size of the rest, checksum; as driver 580 writes it."""


def install(module: ModuleType) -> None:
    """Hook `torch.cuda`. Raises HookMissing if it is not as expected."""
    require(module, "_lazy_call")
    # Only then is it known that this process uses a GPU, and by which driver.
    module._lazy_call(_begin)


@guarded
def _begin() -> None:
    driver, folder = _driver(), _folder()
    if driver is None or folder is None:
        return
    _restore(folder, driver)
    record = partial(_record, folder, driver, set(folder.glob(_FILES)))
    if parent_process() is None:
        atexit.register(record)
    else:
        # A child of multiprocessing ends without atexit's.
        Finalize(None, record, exitpriority=0)


def _driver() -> str | None:
    """Return the version of the driver that is loaded; None if it is not NVIDIA's for Linux."""
    found = _DRIVER.search(Path("/proc/self/maps").read_text(errors="replace"))
    return found and found[1]


def _folder() -> Path | None:
    """Return where the driver keeps what it compiles; None if it does not."""
    home, chosen = os.environ.get("HOME"), os.environ.get("CUDA_CACHE_PATH")
    if os.environ.get("CUDA_CACHE_DISABLE") == "1" or not (home or chosen):
        return None
    # A job may change its working directory.
    return Path(chosen or f"{home}/.nv/ComputeCache").absolute()


@guarded
def _restore(folder: Path, driver: str) -> None:
    client = active_client()
    if client is None:
        return
    key = re.compile(re.escape(driver) + "-([0-9a-f])([0-9a-f])([0-9a-f]{14})")
    found = [key.fullmatch(each) for _, each in client.profile(NAMESPACE)]
    try:
        for match in [match for match in found if match][-_MOST:]:
            path = folder.joinpath(*match.groups())
            if path.exists():
                client.use(NAMESPACE, match[0])
            elif content := _stored(client, match[0]):
                path.parent.mkdir(parents=True, exist_ok=True)
                place(path, content, _MODE)
                os.utime(path, (_OURS, _OURS))
    except OSError as error:
        # As in a home that is read-only, where the driver keeps nothing either.
        logger.info("what the driver compiles is not restored: %s", error)


def _stored(client: Client, key: str) -> bytes | None:
    for entry in client.variants(NAMESPACE, key):
        content = entry.members.get(_MEMBER, b"")
        if len(content) == _size(content):
            return content
    return None


@guarded
def _record(folder: Path, driver: str, known: set[Path]) -> None:
    client = active_client()
    for path in set(folder.glob(_FILES)) - known if client else ():
        # The driver may drop one meanwhile, and a folder that is shared hold anything.
        with suppress(OSError), os.fdopen(folders.open_to_read(path), "rb") as file:
            status = os.fstat(file.fileno())
            header = file.read(_HEADER.size)
            # Another process may be writing it.
            is_whole = status.st_size == _size(header)
            if client and is_whole and status.st_mtime_ns != _OURS:
                kernel = "".join(path.parts[-3:])
                client.put(NAMESPACE, f"{driver}-{kernel}", {_MEMBER: header + file.read()})


def _size(header: bytes) -> int:
    """Return how large a file is that begins so; -1 if none does."""
    if len(header) < _HEADER.size:
        return -1
    _, asked, rest, _ = _HEADER.unpack_from(header)
    return _HEADER.size + int(asked) + int(rest)
