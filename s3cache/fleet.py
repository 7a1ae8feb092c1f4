"""What the machines of a fleet run, as the newest segment of each job's profile says."""

from dataclasses import dataclass
from typing import Self

import anyio

from s3cache import profile
from s3cache.errors import Corrupt, ObjectAbsent, StoreError, Unreachable
from s3cache.machine import platform_tag
from s3cache.names import printable
from s3cache.profile import Segment
from s3cache.settings import Settings
from s3cache.stores.base import ObjectStore

JOBS = 256
"""The jobs that wrote last; of others nothing is read."""
AT_ONCE = 16


@dataclass(frozen=True)
class Report:
    """What the machine runs that wrote last to the profile of a job; "" is not there, or not known."""

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
    """Return what is known of each job, the one that wrote last first.

    Costs one LIST for each thousand segments and one GET for each job.
    Raises StoreError when the bucket cannot be read, or does not answer within S3CACHE_DEADLINE.
    """
    return anyio.run(_reports, settings)


async def _reports(settings: Settings) -> list[Report]:
    from s3cache.bucket import Bucket

    found: dict[str, Report] = {}
    failures: list[StoreError] = []
    keyring = settings.keyring()
    with anyio.move_on_after(settings.deadline_seconds) as deadline:
        async with Bucket(settings.url) as bucket:
            newest = await _newest_segments(bucket)
            limiter = anyio.CapacityLimiter(AT_ONCE)

            async def read(name: str) -> None:
                async with limiter:
                    try:
                        found[name] = Report.of(name, profile.decode(name, await bucket.get(name), keyring))
                    except (ObjectAbsent, Corrupt):
                        return
                    except StoreError as error:
                        failures.append(error)

            async with anyio.create_task_group() as group:
                for name in newest:
                    group.start_soon(read, name)
    if deadline.cancelled_caught:
        raise Unreachable(f"{settings.url}: the profiles did not come within S3CACHE_DEADLINE")
    if failures:
        raise failures[0]
    return [found[name] for name in newest if name in found]


async def _newest_segments(objects: ObjectStore) -> list[str]:
    newest: dict[str, str] = {}
    async for name, *_ in objects.list("profiles/"):
        prefix = name[: name.rfind("/") + 1]
        if profile.is_segment_name(name, prefix) and prefix.count("/") == 3:
            newest[prefix] = max(name, newest.get(prefix, ""))
    return sorted(newest.values(), key=profile.written_at, reverse=True)[:JOBS]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
