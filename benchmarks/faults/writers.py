"""Many writers at once, with half of their keys shared: python -m benchmarks.faults.writers

Every writer is a machine of its own. Of a shared key, all have made a result, each with other bytes; for
one in ten of these keys, there are several variants. While they write, they read what others have written.
"""

import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import anyio
import click
import msgspec

from benchmarks.bars import Number
from benchmarks.faults.verdict import conclude
from s3cache.bucket import Bucket
from s3cache.cache import Cache
from s3cache.errors import StoreError
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine
from s3cache.manifest import Entry, Result
from s3cache.tier import DiskTier
from tests.servers import Server, seaweedfs

T = TypeVar("T")

BUCKET = "writers"
URL = f"s3://{BUCKET}/writers"
ROOM = 4 << 30
BATCH = 100
READ = 5
"""Keys that are read after each batch."""
VARIANTS = 4


class Task(msgspec.Struct, frozen=True):
    """What one process does: for which writers, and how many keys each has."""

    writers: list[int]
    keys: int
    root: str
    environment: dict[str, str]


class Said(msgspec.Struct):
    """What a process found: slots that are not what they should be, and reads that are not."""

    wrong_slots: int = 0
    wrong_reads: int = 0
    reads: int = 0


def check(server: Server, root: Path, processes: int, writers: int, keys: int) -> list[Number]:
    """Let so many writers, shared among so many processes, put so many keys each, half of them shared."""
    shares = [list(range(number, writers, processes)) for number in range(processes)]
    tasks = [Task(share, keys, str(root), server.environment()) for share in shares]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        said = pool.map(_run, tasks)
        lost, torn, slots, variants = pool.apply(_look, (tasks[0], writers))
    shared = keys // 2
    several = f"of {len(range(0, shared, 10))}, {VARIANTS} each"
    wrong_slots = sum(each.wrong_slots for each in said)
    wrong_reads = sum(each.wrong_reads for each in said)
    reads = sum(each.reads for each in said)
    return [
        Number("entries lost", 0, lost, note=f"of {writers * (keys - shared) + shared}"),
        Number("reads with other bytes, meanwhile", 0, wrong_reads, note=f"of {reads}"),
        Number("reads with other bytes, afterwards", 0, torn),
        Number("keys of one variant that have more than one slot", 0, slots, note=f"of {shared}"),
        Number("puts that came to another slot than the first writer's", 0, wrong_slots),
        Number("keys of several variants that lack one, or have one twice", 0, variants, note=several),
    ]


def _results(writer: int, keys: int) -> Iterator[Result]:
    for key in range(keys):
        is_shared = key < keys // 2
        name = f"shared-{key}" if is_shared else f"{writer}-{key}"
        variant = f"variant-{writer % VARIANTS}" if is_shared and key % 10 == 0 else ""
        yield Result("ns", name, {"binary": _content(name, variant, writer)}, variant)


def _content(key: str, variant: str, writer: int) -> bytes:
    """Return what a writer has made: bytes that tell whose they are."""
    said = f"{key} {variant} {writer} ".encode()
    randomly = random.Random(said)
    return said + randomly.randbytes(randomly.choice([200, 3_000, 20_000]))


def _is_right(entry: Entry, key: str) -> bool:
    content = entry.members["binary"]
    of, rest = content.split(b" ", 1)
    variant, writer, _ = rest.split(b" ", 2)
    return (of.decode(), variant.decode()) == (key, entry.variant) and content == _content(
        key, entry.variant, int(writer)
    )


def _run(task: Task) -> Said:
    os.environ |= task.environment
    return anyio.run(_write_all, task)


async def _write_all(task: Task) -> Said:
    said = Said()
    async with anyio.create_task_group() as group:
        for writer in task.writers:
            group.start_soon(_write, task, writer, said)
    return said


async def _write(task: Task, writer: int, said: Said) -> None:
    async with Bucket(URL) as bucket:
        cache = Cache(bucket, DiskTier(Path(task.root, f"tier-{writer}"), ROOM), Machine(), NO_KEYS)
        results = list(_results(writer, task.keys))
        randomly = random.Random(writer)
        for start in range(0, len(results), BATCH):
            batch = results[start : start + BATCH]
            slots = await _until_it_is_done(partial(cache.put_all, batch))
            said.wrong_slots += sum(
                slot != 0 if not result.variant else slot not in range(VARIANTS)
                for slot, result in zip(slots, batch, strict=True)
            )
            reader = Cache(bucket, DiskTier(Path(task.root, f"reader-{writer}"), ROOM), Machine(), NO_KEYS)
            for result in randomly.sample(results, READ):
                for entry in await _until_it_is_done(partial(_variants, reader, result.key)):
                    said.reads += 1
                    said.wrong_reads += not _is_right(entry, result.key)


async def _variants(cache: Cache, key: str) -> list[Entry]:
    return [entry async for entry in cache.variants("ns", key)]


async def _until_it_is_done(action: Callable[[], Awaitable[T]]) -> T:
    """Do it again when the server, which so many keep busy, does not answer in time."""
    while True:
        try:
            return await action()
        except StoreError:
            await anyio.sleep(1)


def _look(task: Task, writers: int) -> tuple[int, int, int, int]:
    os.environ |= task.environment
    return anyio.run(_look_at_all, task, writers)


async def _look_at_all(task: Task, writers: int) -> tuple[int, int, int, int]:
    """Return how many entries are lost and torn, and how many keys have wrong slots and wrong variants."""
    lost = torn = many = incomplete = 0
    wanted = {result.key: result for writer in range(writers) for result in _results(writer, task.keys)}
    async with Bucket(URL) as bucket:
        cache = Cache(bucket, DiskTier(Path(task.root, "tier-of-the-last"), ROOM), Machine(), NO_KEYS)
        limiter = anyio.Semaphore(16)

        async def look(result: Result) -> None:
            nonlocal lost, torn, many, incomplete
            async with limiter:
                found = await _until_it_is_done(partial(_variants, cache, result.key))
            torn += sum(not _is_right(entry, result.key) for entry in found)
            lost += not found
            if result.variant:
                variants = Counter(entry.variant for entry in found)
                incomplete += sorted(variants.values()) != [1] * min(VARIANTS, writers)
            else:
                many += len(found) > 1

        async with anyio.create_task_group() as group:
            for result in wanted.values():
                group.start_soon(look, result)
    return lost, torn, many, incomplete


@click.command()
@click.option("--processes", default=16, show_default=True)
@click.option("--writers", default=64, show_default=True)
@click.option("--keys", default=1_000, show_default=True)
def main(processes: int, writers: int, keys: int) -> None:
    """Write and read, then print a table of bars and numbers."""
    with TemporaryDirectory(prefix="s3cache-writers-") as folder, seaweedfs() as server:
        server.make_bucket(BUCKET)
        conclude(check(server, Path(folder), processes, writers, keys))


if __name__ == "__main__":
    main()
