"""Compiled kernels: what a launch needs of one is small; its texts come when somebody asks.

A kernel's members are named by what they are: json, cubin, ttir, ptx … In Triton's folder they are
files, all of one name and these suffixes.
"""

import json
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import triton

from s3cache.integration.hooks import guarded
from s3cache.integration.triton.switch import active_client

NAMESPACE = "triton"
METADATA = "json"
BINARIES = frozenset({"cubin", "hsaco", "spv"})
_BINARY_SUFFIXES = tuple(f".{kind}" for kind in sorted(BINARIES))
_ELF = b"\x7fELF"
_ELF_HEADER = struct.Struct("<32xQQ6xHHHH2x")
"""Where the tables of segments and of sections lie; what an entry of each takes, and how many there are."""
_TRITON = str(Path(triton.__file__).parent).encode()
_PLACEHOLDER = b"<triton>"
_GROUP = "__grp__"
"""Begins the name of the file that says which files make up a kernel."""

_used: set[str] = set()


class Folder(Protocol):
    """One key's folder, as Triton's own manager keeps it."""

    def put(self, data: bytes, filename: str) -> str:
        """Write a file, and return its path."""

    def put_group(self, filename: str, group: dict[str, str]) -> object:
        """Write which files belong together."""


def on_disk(folder: str, filename: str) -> dict[str, str] | None:
    """Return the paths of a kernel's files in Triton's folder; None when a launch lacks one.

    Triton's own manager takes about as long, and does not see that a file was cut.
    """
    group: dict[str, str] = {}
    has_binary = False
    try:
        for name, path in json.loads(_read(f"{folder}/{_GROUP}{filename}"))["child_paths"].items():
            if name.endswith(_BINARY_SUFFIXES):
                if not _is_whole(path):
                    return None
                has_binary = True
            elif name != filename and not os.path.exists(path):  # noqa: PTH110
                continue
            group[name] = path
        metadata = json.loads(_read(group[filename]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    return group if has_binary and isinstance(metadata, dict) else None


def _is_whole(path: str) -> bool:
    """Return whether a binary reaches to where its header says that it ends, if it is an ELF file."""
    file = os.open(path, os.O_RDONLY)
    try:
        header = os.read(file, _ELF_HEADER.size)
        size = os.fstat(file).st_size
    finally:
        os.close(file)
    if not header.startswith(_ELF):
        return size > 0
    segments_at, sections_at, segment, segments, section, sections = _ELF_HEADER.unpack(header)
    return bool(size >= max(segments_at + segment * segments, sections_at + section * sections))


def _read(path: str) -> bytes:
    # A launch waits for this, and Python's own files take three times as long.
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, os.fstat(file).st_size)
    finally:
        os.close(file)


@guarded
def use(key: str) -> None:
    """Note that a kernel was found in Triton's folder."""
    if key not in _used and (cache := active_client()):
        _used.add(key)
        cache.use(NAMESPACE, key)


@guarded
def restore(folder: Folder, path: str, key: str, filename: str) -> dict[str, str] | None:
    """Put what a launch needs of a kernel into its folder, which is at `path`, and return where it lies.

    None when nothing that can be launched is known.
    """
    cache = active_client()
    stem = filename.removesuffix(f".{METADATA}")
    for entry in cache.variants(NAMESPACE, key) if cache else ():
        if not _is_launchable(entry.members):
            continue
        contents = {**entry.members, METADATA: entry.members[METADATA].replace(_PLACEHOLDER, _TRITON)}
        names = {name: f"{stem}.{name}" for name in contents}
        folder.put_group(filename, {names[name]: folder.put(contents[name], names[name]) for name in names})
        if group := on_disk(path, filename):
            return group
    return None


@guarded
def store(folder: str, key: str, filename: str) -> None:
    """Store a kernel that was compiled here, unless a launch would lack a part of it."""
    cache = active_client()
    group = on_disk(folder, filename) if cache else None
    if cache is None or group is None:
        return
    stem = filename.removesuffix(f".{METADATA}")
    members = {name.removeprefix(f"{stem}."): Path(path).read_bytes() for name, path in group.items()}
    members[METADATA] = members[METADATA].replace(_TRITON, _PLACEHOLDER)
    cache.put(NAMESPACE, key, members, on_demand=members.keys() - BINARIES - {METADATA})


def store_folder(folder: Path) -> None:
    """Store the kernel that lies in a folder of Triton's, if one does."""
    for path in folder.glob(f"{_GROUP}*"):
        store(str(folder), folder.name, path.name.removeprefix(_GROUP))


@guarded
def text(key: str, name: str) -> str | None:
    """Return a text of a stored kernel, as "ptx"; None when there is none."""
    cache = active_client()
    entry = cache.get(NAMESPACE, key, [name]) if cache else None
    return entry.members[name].decode() if entry and name in entry.members else None


def _is_launchable(members: Collection[str]) -> bool:
    return METADATA in members and not BINARIES.isdisjoint(members)
