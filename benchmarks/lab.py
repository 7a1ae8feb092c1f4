"""What the measurements of starts share: a server, the network before it, what is recorded there."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from unittest.mock import patch

import anyio
from rich.console import Console

from benchmarks.datasets import Item
from benchmarks.machine import Machine
from benchmarks.network import Network, Wire, network
from s3cache.agent.jobs import Jobs
from s3cache.agent.segments import SegmentWriter
from s3cache.bucket import Bucket
from s3cache.cache import Cache
from s3cache.counts import HighestCounts
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine as Requirements
from s3cache.manifest import Result
from s3cache.tier import DiskTier
from tests.servers import Server

BUCKET = "s3cache-bench"
JOB = "bench"
NAMESPACE = "triton"
ROOM = 8 << 30
BATCH_BYTES = 32 << 20


@dataclass
class Lab:
    """A folder, a server with a bucket, the network to it, and how often to measure."""

    root: Path
    server: Server
    between: Network
    runs: int
    console: Console
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def folder(self) -> Path:
        """Return a folder that is not there yet."""
        return self.root / f"folder-{next(self._numbers)}"

    def machine(self) -> Machine:
        """Return a machine that has never run anything."""
        return Machine(self.folder())

    def url(self) -> str:
        """Return a place in the bucket that nobody else uses."""
        return f"s3://{BUCKET}/place-{next(self._numbers)}"

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        """Put the network before the server."""
        with network(self.server.endpoint, self.between) as wire:
            yield wire

    def settings(self, url: str, wire: Wire) -> dict[str, str]:
        """Return the variables of a job whose bucket is behind the network."""
        return {
            **self.server.environment(),
            "AWS_ENDPOINT_URL_S3": wire.endpoint,
            "S3CACHE_URL": url,
            "S3CACHE_JOB": JOB,
        }

    @contextmanager
    def credentials(self, wire: Wire | None = None) -> Iterator[None]:
        """Let this process reach the server, through the network if one is given."""
        endpoint = {"AWS_ENDPOINT_URL_S3": wire.endpoint} if wire else {}
        with patch.dict(os.environ, {**self.server.environment(), **endpoint}):
            yield

    def record(self, items: Sequence[Item], url: str) -> None:
        """Store a job's results, and its profile, as an agent would that has them all at once."""
        with self.credentials():
            anyio.run(_record, items, url, self.folder())

    def say(self, text: str) -> None:
        """Print what is being done."""
        self.console.print(f"  {text}")


async def _record(items: Sequence[Item], url: str, folder: Path) -> None:
    tier = DiskTier(folder, ROOM)
    jobs = Jobs(NO_KEYS)
    job = jobs.profile(JOB)
    async with Bucket(url) as bucket:
        cache = Cache(bucket, tier, Requirements(), NO_KEYS)
        for batch in _batches(items):
            for result, slot in zip(batch, await cache.put_all(batch), strict=True):
                assert slot is not None
                job.add(result.namespace, result.key, slot)
        await SegmentWriter(cache, bucket, tier, jobs, HighestCounts(folder / "counts"), {}).write()


def result_of(item: Item) -> Result:
    """Return an item of a data set as a result that can be put."""
    return Result(NAMESPACE, item.key, item.members, on_demand=item.on_demand)


def _batches(items: Sequence[Item]) -> Iterator[list[Result]]:
    batch: list[Result] = []
    size = 0
    for item in items:
        if size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(result_of(item))
        size += sum(map(len, item.members.values()))
    yield batch
