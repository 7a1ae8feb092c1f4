"""The jobs that an agent serves: their profiles, their runs, and the report of each run."""

import functools
import json
import logging
import os
import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import anyio

from s3cache.agent.job_profile import JobProfile
from s3cache.agent.protocol import Hello
from s3cache.errors import DiskTierError, S3CacheError
from s3cache.keyring import Keyring
from s3cache.ledger import Ledger
from s3cache.machine import fingerprint, platform_tag

logger = logging.getLogger(__name__)

_PACKAGES = ("torch-s3cache", "torch", "triton", "aioboto3")

PROFILE_SECONDS = 3.0
"""How long, from the begin of a run or the arrival of credentials on, an answer may wait for a profile."""
KEPT_SECONDS = 60.0
"""How long a run is kept whose processes have all ended: another one may follow."""


class Run:
    """One run of a job: all its processes, and what they cost and gained."""

    def __init__(self, id: str, profile: JobProfile) -> None:
        self.id = id
        self.profile = profile
        self.ledger = Ledger()
        self.started = time.monotonic()
        self.report: Path | None = None
        self.prefetch = profile.prefetch_for_a_start()
        """The one that this run waits for."""
        self.found_absent: set[str] = set()
        """Slots that were looked at ahead of being asked for; said once."""
        self.has_spoken = False
        """Whether one of its processes ever connected."""
        self.late: S3CacheError | None = None
        """What is said of a result that did not come in time, unless the cause is known first."""
        self.over_since: float | None = None
        """When it was first seen that none of its processes is left, by the monotonic clock."""
        self.decided: anyio.Event | None = None
        """Set when it was decided what it sees on this machine; None: nobody asked."""
        self.view: bytes | None = None
        """What it sees on this machine."""
        self.pinned: int | None = None
        """How many entries it sees, if it is pinned."""
        self._pids: set[int] = set()
        self._written = b""
        self._untold: str | None = None

    async def until_profile_is_read(self, since: float) -> None:
        """Wait for the profile, until PROFILE_SECONDS after `since` at most, by the monotonic clock."""
        with anyio.move_on_after(since + PROFILE_SECONDS - time.monotonic()):
            await self.prefetch.read.wait()

    def enter(self, pid: int) -> None:
        """Note a process that has connected."""
        self.has_spoken = True
        self._pids.add(pid)

    def is_over(self) -> bool:
        """Return whether all that have connected are gone; one that is there may connect again."""
        # One of another container has no number here.
        self._pids = {pid for pid in self._pids if not pid or Path(f"/proc/{pid}").exists()}
        return self.has_spoken and not self._pids

    def warn(self, error: S3CacheError) -> None:
        """Note what is wrong: the first time for the job to be told, which happens once."""
        if not self.ledger.warnings:
            logger.warning("%s", error)
            self.ledger.warnings.append(str(error))
            self._untold = str(error)

    def take_warning(self) -> str | None:
        """Return what the job is yet to be told."""
        untold, self._untold = self._untold, None
        return untold

    def write_report(self) -> bytes:
        """Return the report, as JSON, and write it to the file that the job named, if it did."""
        if self.late:
            self.warn(self.late)
        report = {
            "job": self.profile.job,
            **self.ledger.as_dict(),
            "trusted_keys": [f"{key.name} {key.id}" for key in self.profile.keyring.trusted],
            "pinned": self.pinned,
            "versions": versions(),
            "machine": fingerprint(),
        }
        data = json.dumps(report, indent=2).encode() + b"\n"
        if self.report is not None and data != self._written:
            unfinished = self.report.with_name(f".{self.report.name}.{os.getpid()}")
            try:
                self.report.parent.mkdir(parents=True, exist_ok=True)
                unfinished.write_bytes(data)
                unfinished.rename(self.report)
                self._written = data
            except OSError as error:
                why = f"{self.report} cannot be written: {error.strerror}; set S3CACHE_REPORT"
                self.warn(DiskTierError(why))
        return data


class Jobs:
    """Every run that goes on, or has just ended, by its id and job, and every profile, by its job."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self.runs: dict[tuple[str, str], Run] = {}
        self.profiles: dict[str, JobProfile] = {}

    def run(self, hello: Hello) -> Run:
        """Return the run that a process belongs to."""
        run = self.runs.get((hello.run, hello.job))
        if run is None:
            run = self.runs[hello.run, hello.job] = Run(hello.run, self.profile(hello.job))
            run.report = Path(hello.report) if hello.report else None
            for earlier in self.runs.values():
                # The report that is there is that of the last run that was to write it.
                if earlier is not run and earlier.report == run.report:
                    earlier.report = None
        return run

    def forget_ended(self) -> None:
        """Forget each run that has been over for a while, and write its report for the last time."""
        now = time.monotonic()
        for name, run in list(self.runs.items()):
            if not run.is_over():
                run.over_since = None
            elif run.over_since is None:
                run.over_since = now
            elif now - run.over_since > KEPT_SECONDS:
                run.write_report()
                del self.runs[name]

    def profile(self, job: str) -> JobProfile:
        """Return the profile of a job."""
        if job not in self.profiles:
            self.profiles[job] = JobProfile(job, platform_tag(), self._keyring)
        return self.profiles[job]

    def ledger_of(self, profile: JobProfile) -> Ledger:
        """Return the ledger of the last run that uses a profile."""
        ledgers = [run.ledger for run in self.runs.values() if run.profile is profile]
        return ledgers[-1] if ledgers else Ledger()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a report names."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
