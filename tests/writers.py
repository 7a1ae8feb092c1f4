"""What the processes of a test write to a disk tier or a spool: content that tells its own name."""

import itertools
import random
from pathlib import Path
from unittest import mock

from s3cache.digest import digest_of
from s3cache.manifest import Result
from s3cache.spool import Put, Spool
from s3cache.tier import DiskTier


def content_of(name: str, size: int) -> bytes:
    """Return the only right content of an object."""
    return random.Random(name).randbytes(size)


def size_of(name: str) -> int:
    """Return the size that is written in an object's name."""
    return int(name.rsplit("-", 1)[1])


def write(root: Path, limit: int, names: list[str]) -> None:
    """Write objects."""
    tier = DiskTier(root, limit)
    for name in names:
        tier.write(name, content_of(name, size_of(name)))


def write_many(root: Path, limit: int, writer: int, count: int, size: int) -> None:
    """Write so many objects of one size, most of them one's own, a few everybody's."""
    write(
        root,
        limit,
        [
            f"packs/{number % 7}/{'shared' if number % 5 == 0 else writer}-{number}-{size}"
            for number in range(count)
        ],
    )


def write_for_ever(root: Path, limit: int, seed: int) -> None:
    """Write objects of all sizes, read some of them, remove a few."""
    tier = DiskTier(root, limit)
    randomly = random.Random(seed)
    for number in itertools.count():
        name = f"packs/{number % 5}/{seed}-{number}-{randomly.randrange(limit // 4)}"
        tier.write(name, content_of(name, size_of(name)))
        tier.read(name)
        if number % 7 == 0:
            tier.remove(name)


def put_of(number: int) -> Put:
    """Return the only right result of a number."""
    content = random.Random(number).randbytes(5000 + number % 7 * 1000)
    result = Result(
        namespace="fx-graph",
        key=f"key-{number}",
        members={"content": content, "source": b"text"},
        variant=digest_of(content),
        requires={"glibc": "2.31"},
        cost_seconds=float(number),
        on_demand=frozenset({"source"}),
    )
    return Put(result, job="job", run="run")


def spool_for_ever(folder: Path, first: int, log: Path) -> None:
    """Spool results; after each, add its number to a log."""
    spool = Spool(folder, 1 << 30)
    with log.open("ab", buffering=0) as acknowledgements:
        for number in itertools.count(first):
            spool.add(put_of(number))
            acknowledgements.write(f"{number}\n".encode())


def spool_one(folder: Path, number: int) -> None:
    """Spool one result."""
    Spool(folder, 1 << 30).add(put_of(number))


def spool_at_one_moment(folder: Path, number: int) -> None:
    """Spool one result at the moment at which all others do."""
    with mock.patch("time.time_ns", return_value=1):
        spool_one(folder, number)
