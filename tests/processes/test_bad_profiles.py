"""A profile or a pack that is not what it should be: a miss or a refusal, soon, and in little memory."""

from collections.abc import Callable

import pytest
import zstandard

from s3cache import catalog, pack, prelude, profile
from s3cache.catalog import Reference
from s3cache.keyring import NO_KEYS
from s3cache.machine import platform_tag
from s3cache.manifest import Manifest, Member, Place, Result
from s3cache.names import prelude_name
from s3cache.pack import PackFrame
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from tests.processes.conftest import NewBucket, NewMachine
from tests.processes.machines import Bucket, Machine, content

KEYS = [f"key-{number}" for number in range(3)]
RECORD = f"""
for key in {KEYS}:
    members = {{"binary": content(key, 50_000), "ptx": content(key, 70_000)}}
    cache.put("triton", key, members, on_demand=["ptx"])
"""
# Every key is either there, and right, or not there; then the job goes on and stores what it missed.
USE = f"""
found = 0
for key in {KEYS}:
    entry = cache.get("triton", key)
    assert entry is None or entry.members == {{"binary": content(key, 50_000)}}
    found += entry is not None
    if entry is None:
        cache.put("triton", key, {{"binary": content(key, 50_000)}})
say(found)
"""
PROFILE = f"profiles/job/{platform_tag()}/"
SOON_SECONDS = 10.0

Damage = Callable[[Bucket], None]


@pytest.fixture(scope="module")
def original(new_bucket: NewBucket, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """A place that one machine has recorded into."""
    place = new_bucket()
    folder = tmp_path_factory.mktemp("machines") / "recording"
    machine = Machine(folder, place.settings, is_unhurried=True)
    assert machine.run(RECORD, S3CACHE_JOB="job").status == 0
    machine.wait_until_idle()
    return place


@pytest.fixture
def recorded(bucket: Bucket, original: Bucket) -> Bucket:
    """A place with the same objects, to be damaged; without a prelude, which would hide the damage."""
    for name in original.names():
        if not name.startswith("preludes/"):
            bucket.write(name, original.read(name))
    return bucket


def use(machine: Machine) -> int:
    """Run the job on a machine of little memory; return how many keys it found."""
    job = machine.run(USE, S3CACHE_JOB="job")
    assert (job.status, job.stderr) == (0, "")
    assert job.seconds < SOON_SECONDS
    machine.wait_until_idle()
    assert "Traceback" not in machine.log()
    return int(job.stdout)


def without_packs(place: Bucket) -> None:
    for name in place.names("packs/"):
        place.delete(name)


def with_truncated_packs(place: Bucket) -> None:
    for name in place.names("packs/"):
        data = place.read(name)
        place.delete(name)
        place.write(name, data[: len(data) // 3])


def with_changed_packs(place: Bucket) -> None:
    for name in place.names("packs/"):
        data = bytearray(place.read(name))
        data[10] ^= 1
        place.delete(name)
        place.write(name, bytes(data))


@pytest.mark.parametrize("damage", [without_packs, with_truncated_packs, with_changed_packs])
def test_a_pack_that_is_gone_or_damaged_is_a_miss_and_is_mended(
    new_machine: NewMachine, recorded: Bucket, damage: Damage
) -> None:
    damage(recorded)
    assert use(new_machine(knows=recorded)) == 0
    assert use(new_machine(knows=recorded)) == len(KEYS)


def forged(frames: list[PackFrame], references: list[Reference]) -> bytes:
    return profile.encode(Segment(frames, catalog.build(references, NO_KEYS), profile=PROFILE), NO_KEYS)


def reference(key: str, place: Place, size: int = 50_000) -> Reference:
    member = Member("binary", bytes(32), size)
    return Reference(0, Manifest("triton", key, [member], [place]))


def past_the_end(place: Bucket) -> bytes:
    """Return a segment that names ranges where packs have ended."""
    (name,) = place.names("packs/")
    beyond = Place(bytes.fromhex(name.removeprefix("packs/")), 10 << 30, 1000, 50_000)
    return forged([PackFrame(beyond, bytes(32), "triton", {})], [reference(key, beyond) for key in KEYS])


def of_ten_gigabytes(place: Bucket) -> bytes:
    """Return a segment that names members of 10 GB."""
    (name,) = place.names("packs/")
    huge = Place(bytes.fromhex(name.removeprefix("packs/")), 0, 10 << 30, 10 << 30)
    references = [reference(key, huge, size=10 << 30) for key in KEYS]
    return forged([PackFrame(huge, bytes(32), "triton", {})], references)


def of_ten_million_entries(place: Bucket) -> bytes:
    """Return a segment with as many bytes as ten million references, which compress well."""
    chunks = 10_000_000 * 100 >> 20
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=chunks << 20)
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(chunks)) + compressor.flush()


def that_disagrees(place: Bucket) -> bytes:
    """Return a segment that says, of what is there, that it lies in another pack."""
    other = pack.build([Result("triton", key, {"binary": content("other", 50_000)}) for key in KEYS], {})
    references = [Reference(0, made) for made in other.manifests]
    return forged(other.frames, references)


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (past_the_end, "is not where the profile says"),
        (of_ten_gigabytes, "is skipped"),
        (of_ten_million_entries, "is skipped"),
        (that_disagrees, "is not where the profile says"),
    ],
)
def test_a_segment_that_is_wrong_is_refused_and_what_is_there_is_found(
    new_machine: NewMachine, recorded: Bucket, forge: Callable[[Bucket], bytes], says: str
) -> None:
    # The newest one: what it says of where a result lies comes first.
    forged = forge(recorded)
    recorded.write(profile.segment_name(PROFILE, 9_999_999_999_999, forged), forged)
    machine = new_machine(knows=recorded)
    assert use(machine) == len(KEYS)
    assert says in machine.log()


def of_another_job(original: Bucket) -> bytes:
    """Return the prelude of another job."""
    (name,) = original.names(PROFILE)
    segments = {name.replace("/job/", "/other/"): original.read(name)}
    return prelude.encode(Prelude(segments, {}))


def of_forged_frames(original: Bucket) -> bytes:
    """Return a prelude whose frames are not what its segment says."""
    (name,) = original.names(PROFILE)
    segment = original.read(name)
    frames = {packed.place.name: b"forged" for packed in profile.decode(name, segment, NO_KEYS).frames}
    return prelude.encode(Prelude({name: segment}, frames))


def of_zip_bombs(original: Bucket) -> bytes:
    """Return a prelude whose segments, which the LIST names too, grow to gigabytes."""
    bomb = of_ten_million_entries(original)
    names = [profile.segment_name(PROFILE, number, bomb) for number in range(16)]
    for name in names:
        original.write(name, bomb)
    return prelude.encode(Prelude(dict.fromkeys(names, bomb), {}))


def that_is_too_long(original: Bucket) -> bytes:
    """Return a prelude that is longer than any may be."""
    return bytes(64 << 20)


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (of_another_job, "prelude"),
        (of_forged_frames, "prelude"),
        (of_zip_bombs, "is skipped"),
        (that_is_too_long, "prelude"),
    ],
)
def test_a_prelude_that_is_wrong_is_refused_and_what_is_there_is_found(
    new_machine: NewMachine, recorded: Bucket, forge: Callable[[Bucket], bytes], says: str
) -> None:
    recorded.write(prelude_name(PROFILE), forge(recorded))
    machine = new_machine(knows=recorded)
    assert use(machine) == len(KEYS)
    assert says in machine.log()


def test_texts_come_when_they_are_asked_for_and_with_the_profile_from_then_on(
    new_machine: NewMachine, recorded: Bucket
) -> None:
    ask = f"""
    assert cache.get("triton", {KEYS[0]!r}).members.keys() == {{"binary"}}
    assert cache.get("triton", {KEYS[0]!r}, ["ptx"]).members == {{"ptx": content({KEYS[0]!r}, 70_000)}}
    """
    machine = new_machine(knows=recorded)
    assert machine.run("time.sleep(1)", S3CACHE_JOB="job").status == 0
    machine.wait_until_idle()
    before = machine.frames()
    assert machine.run(ask, S3CACHE_JOB="job")[:3] == (0, "", "")
    machine.wait_until_idle()
    assert len(machine.frames()) == len(before) + 1
    later = new_machine(knows=recorded)
    assert later.run("time.sleep(1)", S3CACHE_JOB="job").status == 0
    later.wait_until_idle()
    assert later.frames() == machine.frames()
