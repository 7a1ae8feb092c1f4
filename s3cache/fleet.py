"""What the machines of a fleet run, as the newest segments of each job's profile say."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import anyio

from s3cache import profile
from s3cache.concurrency import for_each
from s3cache.errors import Corrupt, ObjectAbsent, Unreachable
from s3cache.machine import platform_tag
from s3cache.names import printable
from s3cache.profile import Segment
from s3cache.settings import Settings
from s3cache.stores.base import ObjectStore

JOBS = 256
"""The jobs that wrote last; of others nothing is read."""
SEGMENTS = 4
"""So many of a job are read to find one by a machine with GPUs."""
AT_ONCE = 16


@dataclass(frozen=True)
class Report:
    """What a machine runs that wrote to the profile of a job; "" is not there, or not known."""

    job: str
    platform: str
    python: str
    triton: str
    has_gpus: bool

    @classmethod
    def of(cls, name: str, segment: Segment) -> Self:
        """Return what the segment of that name says of its writer."""
        _, job, platform, _ = name.split("/")
        said = segment.writer
        return cls(job, platform, said.get("python", ""), said.get("triton", ""), bool(said.get("gpus")))

    def finds(self, python: str, triton: str) -> bool:
        """Return whether that machine finds the kernels that these versions compile on this platform.

        Triton hashes its own files into the keys, of which one is built for each minor Python.
        """
        return (self.platform, _minor(self.python), self.triton) == (platform_tag(), _minor(python), triton)

    def __str__(self) -> str:
        """Return it on one line."""
        return printable(
            f"{self.job}: Python {self.python}, triton {self.triton or 'none'}, {self.platform}"
        )


def reports(settings: Settings) -> list[Report]:
    """Return what is known of each job: of its machines with GPUs, or else of all, the one that wrote last.

    The job that was written to last comes first. Costs one LIST for each thousand segments, and one GET for
    each job, SEGMENTS at most where the last that wrote had no GPU.
    Raises StoreError when the bucket cannot be read, or does not answer within S3CACHE_DEADLINE.
    """
    return anyio.run(_reports, settings)


async def _reports(settings: Settings) -> list[Report]:
    from s3cache.bucket import Bucket

    found: dict[str, Report] = {}
    keyring = settings.keyring()
    with anyio.move_on_after(settings.deadline_seconds) as deadline:
        async with Bucket(settings.url) as bucket:
            jobs = await _newest_segments(bucket)

            async def read(newest: list[str]) -> None:
                for name in newest:
                    with suppress(ObjectAbsent, Corrupt):
                        report = Report.of(name, profile.decode(name, await bucket.get(name), keyring))
                        if report.has_gpus or newest[0] not in found:
                            found[newest[0]] = report
                        if report.has_gpus:
                            return

            await for_each(jobs, read, AT_ONCE)
    if deadline.cancelled_caught:
        raise Unreachable(f"{settings.url}: the profiles did not come within S3CACHE_DEADLINE")
    return [found[newest[0]] for newest in jobs if newest[0] in found]


async def _newest_segments(objects: ObjectStore) -> list[list[str]]:
    """Return the last segments of each job, the newest first; first those of the job written to last."""
    segments: dict[str, list[str]] = {}
    async for name, *_ in objects.list("profiles/"):
        prefix = name[: name.rfind("/") + 1]
        if profile.is_segment_name(name, prefix) and prefix.count("/") == 3:
            segments.setdefault(prefix, []).append(name)
    newest = [sorted(names, reverse=True)[:SEGMENTS] for names in segments.values()]
    return sorted(newest, key=lambda names: profile.written_at(names[0]), reverse=True)[:JOBS]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
