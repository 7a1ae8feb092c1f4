"""Whom a job trusts: real jobs and agents, one of them signing, against a real server."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from s3cache.machine import platform_tag
from tests.processes.conftest import NewMachine
from tests.processes.machines import Bucket, Machine
from tests.signing import ALICE, BOB

KEYS = ["small", "large"]
JOB = """
sizes = {"small": 100, "large": 100_000}
found = {key: cache.get("triton", key) for key in sizes}
for key, size in sizes.items():
    members = {"binary": content(key, size)}
    say(key, found[key] is not None and found[key].members == members)
    if found[key] is None:
        cache.put("triton", key, members)
# It ends when its profile was read: what is wrong with that is told it.
cache.profile("")
"""
NONE, ALL = "small False\nlarge False\n", "small True\nlarge True\n"
SECRET = ALICE.secret_text.partition(":")[2]
SIGNS = {
    "S3CACHE_SIGNING_KEY": "env:SIGNING_KEY",
    "SIGNING_KEY": ALICE.secret_text,
    "S3CACHE_TRUSTED_KEYS": str(ALICE.public),
}
TRUSTS = {"S3CACHE_TRUSTED_KEYS": str(ALICE.public)}
TRUSTS_BOB = {"S3CACHE_TRUSTED_KEYS": str(BOB.public)}
PROFILE = f"profiles/job/{platform_tag()}/"


def run(machine: Machine, settings: Mapping[str, str], *, says: str = "") -> str:
    """Run the job to its end and its agent's, and return what it found; what it says of it must hold."""
    report = machine.folder / "report.json"
    job = machine.run(JOB, S3CACHE_JOB="job", S3CACHE_REPORT=str(report), **settings)
    assert job.status == 0, job.stderr
    assert says in job.stderr
    assert bool(job.stderr) == bool(says), job.stderr
    assert job.unsigned == ("S3CACHE_TRUSTED_KEYS" not in settings)
    machine.wait_until_idle()
    return job.stdout


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_a_trusted_key_signed_is_used(new_machine: NewMachine, bucket: Bucket) -> None:
    recording = new_machine()
    assert run(recording, SIGNS) == NONE
    reading = new_machine()
    assert run(reading, SIGNS) == ALL
    # The same machine, hot, at the moment that the key is revoked.
    assert run(reading, TRUSTS_BOB, says="S3CACHE_SIGNING_KEY") == NONE
    assert run(reading, SIGNS) == ALL
    assert bucket.names("manifests/") == [f"manifests/triton/{key}/0" for key in sorted(KEYS)]


def test_the_secret_key_is_nowhere_to_be_found(machine: Machine, bucket: Bucket) -> None:
    assert run(machine, SIGNS) == NONE
    written = everything_written(machine.folder) + b"".join(map(bucket.read, bucket.names()))
    assert ALICE.public.id.encode() in written
    assert SECRET.encode() not in written
    assert bytes(ALICE._seed) not in written


def test_unsigned_is_a_miss_once_keys_are_set_and_the_next_slot_is_used(
    new_machine: NewMachine, bucket: Bucket
) -> None:
    assert run(new_machine(), {}) == NONE
    assert run(new_machine(), SIGNS, says="is not used: it is not signed") == NONE
    assert run(new_machine(), SIGNS) == ALL
    assert f"manifests/triton/{KEYS[0]}/1" in bucket.names("manifests/")


def test_that_nothing_is_signed_is_said_once_a_run_and_in_its_last_line(machine: Machine) -> None:
    rank = machine.script('cache.get("triton", "small")', "rank.py")
    script = machine.script(
        f"""
        import subprocess
        ranks = [subprocess.Popen([sys.executable, {str(rank)!r}]) for _ in range(3)]
        sys.exit(max(rank.wait() for rank in ranks))
        """
    )
    command = ["run", "--", machine.python, str(script)]
    job = machine.s3cache(*command)
    assert (job.status, job.unsigned) == (0, 1)
    assert ", unsigned;" in job.stderr
    signed = machine.s3cache(*command, **SIGNS)
    assert (signed.status, signed.unsigned) == (0, 0)
    assert "unsigned" not in signed.stderr


def test_who_cannot_sign_reads_and_is_told_once(new_machine: NewMachine, bucket: Bucket) -> None:
    assert run(new_machine(), SIGNS) == NONE
    stored = bucket.names()
    reading = new_machine()
    assert run(reading, TRUSTS, says="nobody would trust what is stored here") == ALL
    assert bucket.names() == stored
    assert reading.frames()
    assert reading.spooled() == []


def test_what_cannot_be_signed_waits_for_a_start_that_can(machine: Machine, bucket: Bucket) -> None:
    lost = {**SIGNS, "SIGNING_KEY": ""}
    assert run(machine, lost, says="S3CACHE_SIGNING_KEY") == NONE
    assert bucket.names() == []
    assert len(machine.spooled()) == 2
    run(machine, SIGNS)
    assert bucket.keys("triton") == sorted(KEYS)
    assert machine.spooled() == []


def test_an_older_profile_that_is_put_back_is_noticed_and_used(
    new_machine: NewMachine, bucket: Bucket
) -> None:
    recording = new_machine()
    assert run(recording, SIGNS) == NONE
    old = bucket.names(PROFILE)
    job = recording.run('cache.put("triton", "new", {"binary": b"new"})', S3CACHE_JOB="job", **SIGNS)
    assert job.status == 0
    recording.wait_until_idle()
    newer = set(bucket.names(PROFILE)) - {*old}
    assert len(newer) == 1
    for name in newer:
        bucket.delete(name)
    assert run(recording, SIGNS, says="or somebody put an older one back") == ALL
    report = json.loads((recording.folder / "report.json").read_text())
    assert "counts 1, 2 was seen" in report["warnings"][0]
    assert report["trusted_keys"] == [f"alice {ALICE.public.id}"]
    # A machine that never saw the newer one has nothing to compare.
    assert run(new_machine(), SIGNS) == ALL


def test_the_library_signs_and_trusts_too(new_machine: NewMachine, bucket: Bucket) -> None:
    put = """
    import s3cache
    with s3cache.open_sync() as store:
        try:
            say(store.put("ns", "key", {"a": b"a"}))
        except s3cache.Forbidden as error:
            say(error)
        entry = store.get("ns", "key")
        say(entry and entry.members)
    """
    assert new_machine().run(put, **SIGNS).stdout == "0\n{'a': b'a'}\n"
    refused, found = new_machine().run(put, **TRUSTS).stdout.splitlines()
    assert "S3CACHE_SIGNING_KEY" in refused
    assert found == "{'a': b'a'}"
    assert new_machine().run(put, **TRUSTS_BOB).stdout.splitlines()[1] == "None"
    assert bucket.names() == ["manifests/ns/key/0"]


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_folder_that_others_may_write_is_refused_and_the_job_runs(
    machine: Machine, mode: int
) -> None:
    machine.cache.mkdir()
    machine.cache.chmod(mode)
    job = machine.run("say(cache)")
    assert (job.status, job.stdout) == (0, "None\n")
    assert "may write there" in job.stderr
    assert "chmod" in job.stderr
    assert os.listdir(machine.cache) == []  # noqa: PTH208
