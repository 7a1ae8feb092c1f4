"""Kernels that the NVIDIA driver compiles when they are first launched, as those of cuDNN's attention.

Libraries generate some while a job runs, and come without binaries of others. What the driver makes of one
it keeps in a file, named by a digest of all that went into it. It looks for the file when it needs it, so
what lies there by then is found, whatever the folder's index says; a damaged one is compiled again.
"""

import logging
import os
import re
import struct
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from types import ModuleType

from s3cache.integration.hooks import guarded, require
from s3cache.integration.placing import place
from s3cache.integration.pytorch.switch import active_client

logger = logging.getLogger(__name__)

NAMESPACE = "driver-kernel"
_MEMBER = "kernel"
_MOST = 64
"""So many are kept of one driver for a job. The working directory is in what cuDNN generates: where each
start has another one, none would be found again, and each start would add some."""
_MODE = 0o644
_KERNEL = re.compile("[0-9a-f]{16}")
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
    driver = _driver()
    if driver is None or os.environ.get("CUDA_CACHE_DISABLE") == "1":
        return
    folder = Path(os.environ.get("CUDA_CACHE_PATH") or Path.home() / ".nv/ComputeCache")
    _restore(folder, driver)
    # Unlike atexit's, it is called where a child of multiprocessing ends, too.
    Finalize(None, _record, (folder, driver, set(_kernels(folder))), exitpriority=0)


def _driver() -> str | None:
    """Return the version of the driver that is loaded; None if it is not NVIDIA's for Linux."""
    found = _DRIVER.search(Path("/proc/self/maps").read_text(errors="replace"))
    return found and found[1]


def _kernels(folder: Path) -> Iterator[str]:
    return ("".join(path.parts[-3:]) for path in folder.glob(_FILES))


def _path(folder: Path, kernel: str) -> Path:
    return folder / kernel[0] / kernel[1] / kernel[2:]


@guarded
def _restore(folder: Path, driver: str) -> None:
    client = active_client()
    if client is None:
        return
    for _, key in client.profile(NAMESPACE):
        kernel = key.removeprefix(f"{driver}-")
        if not _KERNEL.fullmatch(kernel):
            continue
        path = _path(folder, kernel)
        if path.exists():
            client.use(NAMESPACE, key)
        elif entry := client.get(NAMESPACE, key):
            path.parent.mkdir(parents=True, exist_ok=True)
            place(path, entry.members[_MEMBER], _MODE)


@guarded
def _record(folder: Path, driver: str, known: set[str]) -> None:
    client = active_client()
    added = sorted(set(_kernels(folder)) - known)
    if client is None or not added:
        return
    kept = sum(key.startswith(f"{driver}-") for _, key in client.profile(NAMESPACE))
    if kept + len(added) > _MOST:
        logger.warning(
            "the driver compiled %d kernels, and %d are kept already, of %d at most: they are found again "
            "where a job is started in the same working directory on each machine",
            len(added),
            kept,
            _MOST,
        )
    for kernel in added[: max(_MOST - kept, 0)]:
        content = _path(folder, kernel).read_bytes()
        if _is_whole(content):
            client.put(NAMESPACE, f"{driver}-{kernel}", {_MEMBER: content})


def _is_whole(content: bytes) -> bool:
    """Return whether a file is all there: another process may be writing it."""
    if len(content) < _HEADER.size:
        return False
    _, asked, rest, _ = _HEADER.unpack_from(content)
    return len(content) == _HEADER.size + int(asked) + int(rest)
