"""Two sets of compiler results to measure with: real Triton kernels, and many small ones made of them.

python -m benchmarks.datasets KERNELS_FOLDER
"""

import base64
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarInfo

import click
import zstandard
from rich.console import Console
from rich.table import Table

LAUNCH = (".json", ".cubin")
MLIR = (".source", ".ttir", ".ttgir")
LEVEL = 3
MEAN_BYTES = 50_000
# These two set how alike the entries of the synthetic set are: more of either, and tar.zst finds less.
RENAMED = 0.4
CHANGED = 0.003


@dataclass(frozen=True)
class Item:
    """One compiler result; a launch reads all members but those that are on demand."""

    key: str
    members: dict[str, bytes]
    on_demand: frozenset[str]


@dataclass(frozen=True)
class _Template:
    """A real kernel: the stem of its files, its hash, and its content by kind, with one MLIR text."""

    stem: str
    hash: bytes
    kinds: dict[str, bytes]


def read_kernels(folder: Path) -> list[Item]:
    """The entries of a Triton cache folder, without `__grp__` files, which every machine makes anew."""
    return [
        _item(
            kernel.name,
            {
                file.name: file.read_bytes()
                for file in sorted(kernel.iterdir())
                if not file.name.startswith("__grp__")
            },
        )
        for kernel in sorted(folder.iterdir())
    ]


def write_files(items: Sequence[Item], folder: Path) -> None:
    """Write every member as `<folder>/<key>/<member>`."""
    for item in items:
        (folder / item.key).mkdir(parents=True)
        for name, content in item.members.items():
            (folder / item.key / name).write_bytes(content)


def synthetic(real: Sequence[Item], entries: int = 5_000, seed: int = 0) -> list[Item]:
    """Small entries of five files each, 50 KB in the mean, that compress as the real ones do.

    Each is made of a real kernel: its .json with a hash of its own, and a slice from a random place of
    the .cubin, of the .llir, of the .ptx and of the three MLIR texts as one. A slice's length is the
    real one's, scaled so that the shares of launch members and texts stay; ±50 % by entry. In RENAMED
    of the entries two digits change places in all texts, which renames values and numbers consistently;
    CHANGED of every cubin's bytes change. Both ratios of `statistics` come within 10 % of the real ones.
    """
    rng = random.Random(seed)
    templates = [_template(item) for item in real]
    sizes = _bytes_by_kind(real)
    scale = MEAN_BYTES * len(real) / sizes.total()
    launch = scale * sum(sizes[kind] for kind in LAUNCH)
    cubin_scale = (launch - sizes[".json"]) / sizes[".cubin"]
    items = []
    for number in range(entries):
        digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
        template = templates[number % len(templates)]
        stem, kinds = template.stem, template.kinds
        digits = _two_exchanged(rng) if rng.random() < RENAMED else None
        spread = rng.uniform(0.5, 1.5)
        members = {
            f"{stem}.json": kinds[".json"].replace(template.hash, digest.hex().encode()),
            f"{stem}.cubin": _mutated(_slice(kinds[".cubin"], cubin_scale * spread, rng), rng),
        }
        for kind in (".ttgir", ".llir", ".ptx"):
            members[stem + kind] = _slice(kinds[kind], scale * spread, rng).translate(digits)
        items.append(_item(base64.b32encode(digest).decode().rstrip("="), members))
    return items


def statistics(items: Sequence[Item]) -> dict[str, float]:
    """Counts, bytes by kind, the share that a launch reads, and how well zstd does at level 3.

    Solid is one tar.zst of all files in the order of their paths, as `tar` of the folder would be.
    """
    sizes = _bytes_by_kind(items)
    return {
        "entries": len(items),
        "files": sum(len(item.members) for item in items),
        "bytes": sizes.total(),
        **{f"bytes of {kind}": size for kind, size in sorted(sizes.items())},
        "launch share": sum(sizes[kind] for kind in LAUNCH) / sizes.total(),
        "ratio, each file": sizes.total() / _each_compressed(items),
        "ratio, solid": sizes.total() / _solid_compressed(items),
    }


def _item(key: str, members: dict[str, bytes]) -> Item:
    return Item(key, members, frozenset(name for name in members if not name.endswith(LAUNCH)))


def _kind(name: str) -> str:
    return Path(name).suffix


def _template(item: Item) -> _Template:
    kinds = {_kind(name): content for name, content in item.members.items()}
    kinds[".ttgir"] = b"".join(kinds.pop(kind) for kind in MLIR)
    stem = Path(next(iter(item.members))).stem
    return _Template(stem, json.loads(kinds[".json"])["hash"].encode(), kinds)


def _two_exchanged(rng: random.Random) -> bytes:
    one, other = rng.sample(b"0123456789", 2)
    return bytes.maketrans(bytes((one, other)), bytes((other, one)))


def _slice(content: bytes, scale: float, rng: random.Random) -> bytes:
    size = min(len(content), round(len(content) * scale))
    start = rng.randint(0, len(content) - size)
    return content[start : start + size]


def _mutated(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for at in rng.sample(range(len(content)), round(len(content) * CHANGED)):
        changed[at] = rng.randrange(256)
    return bytes(changed)


def _bytes_by_kind(items: Sequence[Item]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for item in items:
        for name, content in item.members.items():
            sizes[_kind(name)] += len(content)
    return sizes


def _each_compressed(items: Sequence[Item]) -> int:
    compressor = zstandard.ZstdCompressor(LEVEL)
    return sum(len(compressor.compress(content)) for item in items for content in item.members.values())


def _solid_compressed(items: Sequence[Item]) -> int:
    compressor = zstandard.ZstdCompressor(LEVEL).compressobj()
    size = 0
    for item in sorted(items, key=lambda item: item.key):
        for name, content in sorted(item.members.items()):
            header = TarInfo(f"{item.key}/{name}")
            header.size = len(content)
            size += len(compressor.compress(header.tobuf() + content + bytes(-len(content) % 512)))
    return size + len(compressor.flush())


def _text(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    real = read_kernels(folder)
    columns = {"real": statistics(real), "synthetic": statistics(synthetic(real))}
    table = Table("", *columns)
    for row in columns["real"]:
        table.add_row(row, *(_text(column.get(row, 0)) for column in columns.values()))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
