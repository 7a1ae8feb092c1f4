"""Clean-up beside real processes: writers, clean-ups that are killed, machines that only read."""

import random
import time
from collections.abc import Callable

import anyio
import pytest

from s3cache import bucket as buckets
from s3cache import collection, profile, verification
from s3cache.collection import Collected, Terms
from s3cache.keyring import NO_KEYS
from s3cache.verification import Finding, Verdict
from tests.processes.conftest import READER
from tests.processes.machines import Bucket, Machine, wait_for

NewMachine = Callable[..., Machine]

SECONDS = 16.0
WRITER = """
    import itertools, os, s3cache
    randomly = random.Random(int(sys.argv[1]))
    with s3cache.open_sync(os.environ["S3CACHE_URL"]) as cache:
        for number in itertools.count():
            # Some are new, some are stored by all, again and again: also while they are being collected.
            key = f"shared-{randomly.randrange(30)}" if number % 3 else f"{sys.argv[1]}-{number}"
            cache.put("ns", key, {"a": content(key, 3000), "b": content(key + "b", 20)})
            time.sleep(0.1)
"""
CLEANER = """
    import os, anyio
    from s3cache.bucket import Bucket
    from s3cache.collection import Terms, collect
    async def clean():
        async with Bucket(os.environ["S3CACHE_URL"]) as bucket:
            while True:
                await collect(bucket, Terms(unused_seconds=3, grace_seconds=2), delete=True)
    anyio.run(clean)
"""
JOB = """
    cache.get("ns", "key") or cache.put("ns", "key", {"a": content(1, 5000)})
"""


@pytest.fixture
def _here(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process reach the bucket."""
    for name, value in bucket.settings.items():
        monkeypatch.setenv(name, value)


def collect(bucket: Bucket, terms: Terms, *, delete: bool) -> Collected:
    async def run() -> Collected:
        async with buckets.Bucket(bucket.url) as objects:
            return await collection.collect(objects, terms, delete=delete)

    return anyio.run(run)


def findings(bucket: Bucket) -> list[Finding]:
    found: list[Finding] = []

    async def run() -> None:
        async with buckets.Bucket(bucket.url) as objects:
            await verification.verify(objects, NO_KEYS, found.append)

    anyio.run(run)
    return [finding for finding in found if finding.verdict is not Verdict.UNREFERENCED]


@pytest.mark.usefixtures("_here")
def test_no_manifest_dangles_while_writers_write_and_clean_ups_are_killed(
    bucket: Bucket, new_machine: NewMachine
) -> None:
    randomly = random.Random(1)
    machines = [new_machine() for _ in range(3)]
    writers = [
        machine.execute([machine.python, str(machine.script(WRITER)), str(number)])
        for number, machine in enumerate(machines[:2])
    ]
    cleaning = machines[2]
    deadline = time.monotonic() + SECONDS
    gone: set[str] = set()
    seen: set[str] = set()
    while time.monotonic() < deadline:
        cleaner = cleaning.start(CLEANER)
        time.sleep(randomly.uniform(3, 6))
        assert cleaner.poll() is None, cleaner.communicate()
        cleaner.kill()
        cleaner.communicate()
        there = set(bucket.names("packs/"))
        gone |= seen - there
        seen |= there
    for writer in writers:
        assert writer.poll() is None, writer.communicate()
        writer.kill()
        writer.communicate()
    assert gone
    assert findings(bucket) == []
    # What they left goes in the end, and what is used does not come into it.
    cleaning.start(CLEANER)
    wait_for(lambda: not bucket.names("packs/") and not bucket.names("manifests/"), "all to go")


@pytest.mark.usefixtures("_here")
def test_a_start_that_adds_nothing_leaves_a_lease_and_one_that_may_not_write_is_seen_by_no_one(
    bucket: Bucket, new_machine: NewMachine
) -> None:
    recording = new_machine()
    assert recording.run(JOB).status == 0
    recording.wait_until_idle()
    (segment,) = bucket.names("profiles/")
    # As if it had been written three days ago.
    prefix = segment[: segment.rfind("/") + 1]
    data = bucket.read(segment)
    bucket.write(profile.segment_name(prefix, int((time.time() - 3 * 86_400) * 1000), data), data)
    bucket.delete(segment)

    reader = new_machine()
    credentials = {"AWS_ACCESS_KEY_ID": READER[0], "AWS_SECRET_ACCESS_KEY": READER[1]}
    assert reader.run(JOB, **credentials).status == 0
    reader.wait_until_idle()
    assert bucket.names("leases/") == []
    assert "is not left" in reader.log()
    (unused,) = collect(bucket, Terms(0, 0), delete=False).unused
    assert (unused.job, unused.entries) == ("job", 1)
    assert collect(bucket, Terms(0, 0, keep=["job"]), delete=False).unused == []

    for mode in "read-write", "read-only":
        machine = new_machine()
        assert machine.run(JOB, S3CACHE_MODE=mode).status == 0
        machine.wait_until_idle()
        (lease,) = bucket.names("leases/")
        bucket.delete(lease)
    warmed = new_machine()
    assert warmed.s3cache("warm", "--job", "job").status == 0
    assert bucket.names("leases/") == [lease]
