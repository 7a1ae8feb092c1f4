"""Reading a bucket through: each kind of damage is found, and mended so that the next finds nothing."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from s3cache import catalog, condemned, manifest, names, prelude, profile
from s3cache.cache import Cache
from s3cache.catalog import Reference
from s3cache.errors import Corrupt
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine
from s3cache.manifest import MAX_SLOTS, Result
from s3cache.pack import Pack, PackFrame
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from s3cache.stores.base import Listed
from s3cache.tier import DiskTier
from s3cache.verification import Finding, Verdict, verify
from tests.memory import MemoryStore
from tests.test_collection import Damaging
from tests.wrappers import RecordingStore
from tests.writers import content_of

pytestmark = pytest.mark.anyio

NOW = 1e9
PREFIX = names.profile_prefix("job", "linux-x86_64")
KEYS = ["one", "two"]


class Bucket:
    """A bucket with two results in a pack, a small one, a profile of them and its prelude."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.memory = MemoryStore(lambda: self.now)
        self.store = RecordingStore(self.memory)
        self._folder = folder
        self.pack: Pack
        self.segment: str

    @property
    def objects(self) -> dict[str, bytes]:
        return self.memory.objects

    async def fill(self) -> None:
        cache = Cache(self.memory, DiskTier(self._folder, 1 << 30), Machine(), NO_KEYS)
        results = [Result("ns", key, {"binary": content_of(key, 5000)}) for key in KEYS]
        await cache.put_all([*results, Result("ns", "small", {"a": b"content"})])
        found = [manifest.decode(self.objects[slot(key)], NO_KEYS) for key in [*KEYS, "small"]]
        (pack,) = self.named("packs/")
        digest = bytes.fromhex(pack.rpartition("/")[2])
        self.pack = Pack(self.objects[pack], digest, [], found)
        self.segment = await self.write([Reference(0, each) for each in found])
        copies = {self.segment: self.objects[self.segment]}
        await self.memory.create(names.prelude_name(PREFIX), prelude.encode(Prelude(copies, {})))
        self.now += 2 * 86_400

    async def write(self, references: list[Reference]) -> str:
        data = profile.encode(
            Segment(frames=[], catalog=catalog.build(references, NO_KEYS), profile=PREFIX), NO_KEYS
        )
        name = profile.segment_name(PREFIX, len(self.objects), data)
        await self.memory.create(name, data)
        return name

    async def pack_anew(self, offset: int = 0) -> tuple[str, str]:
        """Pack a result anew, and return the names of the pack and of a segment that says where it lies."""
        cache = Cache(self.memory, DiskTier(self._folder, 1 << 30), Machine(), NO_KEYS)
        anew = await cache.pack([Result("ns", "one", {"binary": content_of("one", 5000)})])
        ((place, digest, *rest),) = map(msgspec.structs.astuple, anew.frames)
        frames = [PackFrame(msgspec.structs.replace(place, offset=offset), digest, *rest)]
        data = profile.encode(
            Segment(
                frames, catalog.build([Reference(0, anew.manifests[0])], NO_KEYS), profile=PREFIX, count=1
            ),
            NO_KEYS,
        )
        name = profile.segment_name(PREFIX, len(self.objects), data)
        await self.memory.create(name, data)
        return names.pack_name(anew.digest), name

    def named(self, prefix: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))

    async def verify(self, *, sample: int | None = None, repair: bool = False) -> dict[str, Verdict]:
        """Return what is found, by name; whatever is repaired is not found again."""
        found: list[Finding] = []
        counts = await verify(
            self.store, NO_KEYS, found.append, sample=sample, repair=repair, clock=lambda: self.now
        )
        assert counts == Counter(finding.verdict for finding in found)
        assert len(found) == len({finding.name for finding in found})
        return {finding.name: finding.verdict for finding in found}

    async def repair(self) -> None:
        """Repair; afterwards nothing is wrong, and every manifest resolves."""
        await self.verify(repair=True)
        left = await self.verify()
        assert set(left.values()) <= {Verdict.UNREFERENCED}
        reader = Cache(self.memory, DiskTier(self._folder.with_name("reader"), 1 << 30), Machine(), NO_KEYS)
        for name in self.named("manifests/"):
            if self.objects[name]:
                await reader.entry(manifest.decode(self.objects[name], NO_KEYS), 0)


def slot(key: str, number: int = 0) -> str:
    return names.manifest_name("ns", key, number)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture
async def bucket(tmp_path: Path) -> Bucket:
    filled = Bucket(tmp_path / "writer")
    await filled.fill()
    return filled


async def test_nothing_is_found_where_nothing_is_wrong(bucket: Bucket) -> None:
    before = dict(bucket.objects)
    assert await bucket.verify() == {}
    assert sorted(bucket.store.requests) == sorted(["LIST ", *(f"GET {name}" for name in before)])
    assert await bucket.verify(repair=True) == {}
    assert bucket.objects == before


@pytest.mark.parametrize("key", ["one", "small"])
async def test_a_damaged_manifest_is_wrong(bucket: Bucket, key: str) -> None:
    bucket.objects[slot(key)] = bucket.objects[slot(key)][:-1]
    assert await bucket.verify() == {
        slot(key): Verdict.WRONG,
        bucket.segment: Verdict.MISSING,
    }
    await bucket.repair()
    assert slot(key) not in bucket.objects


async def test_a_manifest_of_another_key_is_wrong(bucket: Bucket) -> None:
    bucket.objects[slot("one")] = bucket.objects[slot("two")]
    assert (await bucket.verify())[slot("one")] is Verdict.WRONG
    await bucket.repair()


async def test_what_lies_in_a_manifest_and_is_damaged_is_wrong(bucket: Bucket) -> None:
    data = bucket.objects[slot("small")]
    bucket.objects[slot("small")] = data.replace(b"content", b"contend")
    assert (await bucket.verify())[slot("small")] is Verdict.WRONG


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
async def test_a_damaged_pack_goes_with_what_lies_in_it(bucket: Bucket, damage: str) -> None:
    (pack,) = bucket.named("packs/")
    data = bucket.objects[pack]
    bucket.objects[pack] = {"truncated": data[:-100], "flipped": flipped(data, 50), "empty": b""}[damage]
    assert await bucket.verify() == {pack: Verdict.WRONG, bucket.segment: Verdict.MISSING}
    await bucket.repair()
    assert bucket.named("") == [slot("small")]


async def test_a_pack_that_is_not_there_is_missed_by_each_that_names_it(bucket: Bucket) -> None:
    (pack,) = bucket.named("packs/")
    del bucket.objects[pack]
    assert await bucket.verify() == {
        slot("one"): Verdict.MISSING,
        slot("two"): Verdict.MISSING,
        bucket.segment: Verdict.MISSING,
    }
    await bucket.repair()
    assert bucket.named("") == [slot("small")]


async def test_a_frame_that_does_not_match_is_wrong(bucket: Bucket) -> None:
    """The pack is whole, but not what the manifest says of it."""
    one, two, _ = bucket.pack.manifests
    other = manifest.Member("binary", two.members[0].digest, 5000, start=one.members[0].start)
    elsewhere = manifest.Place(one.frames[0].pack, 10, 100, one.frames[0].size)
    for wrong in (
        manifest.Manifest("ns", "one", [other], one.frames),
        manifest.Manifest("ns", "one", one.members, [elsewhere]),
    ):
        bucket.objects[slot("one")] = manifest.encode(wrong, NO_KEYS)
        assert (await bucket.verify())[slot("one")] is Verdict.WRONG
    await bucket.repair()
    assert slot("two") in bucket.objects


async def test_a_manifest_that_is_gone_is_missed_by_the_profile(bucket: Bucket) -> None:
    del bucket.objects[slot("two")]
    assert await bucket.verify() == {bucket.segment: Verdict.MISSING}
    await bucket.repair()
    assert bucket.named("profiles/") == bucket.named("preludes/") == []


async def test_a_segment_that_another_one_stands_for_may_name_what_is_gone(bucket: Bucket) -> None:
    old = bucket.segment
    found = [Reference(0, each) for each in bucket.pack.manifests[1:]]
    del bucket.objects[slot("one")]
    data = profile.encode(
        Segment(frames=[], catalog=catalog.build(found, NO_KEYS), replaces=[old], profile=PREFIX), NO_KEYS
    )
    await bucket.memory.create(profile.name_of_compacted([old], data), data)
    assert Verdict.MISSING not in (await bucket.verify()).values()


async def test_a_damaged_segment_is_wrong_and_goes_with_its_prelude(bucket: Bucket) -> None:
    bucket.objects[bucket.segment] += b"x"
    assert (await bucket.verify())[bucket.segment] is Verdict.WRONG
    await bucket.repair()
    assert bucket.named("preludes/") == bucket.named("profiles/") == []
    assert len(bucket.named("manifests/")) == 3


async def test_a_damaged_segment_that_another_one_stands_for_is_wrong_too(bucket: Bucket) -> None:
    """A clean-up reads it."""
    found = [Reference(0, each) for each in bucket.pack.manifests]
    data = profile.encode(
        Segment([], catalog.build(found, NO_KEYS), replaces=[bucket.segment], profile=PREFIX), NO_KEYS
    )
    await bucket.memory.create(profile.name_of_compacted([bucket.segment], data), data)
    bucket.objects[bucket.segment] += b"x"
    assert (await bucket.verify())[bucket.segment] is Verdict.WRONG
    await bucket.repair()
    assert len(bucket.named("profiles/")) == 1


async def test_a_damaged_prelude_is_wrong(bucket: Bucket) -> None:
    name = names.prelude_name(PREFIX)
    copies = {bucket.segment: bucket.objects[bucket.segment]}
    for damaged in (
        b"damaged",
        prelude.encode(Prelude({bucket.segment: b"another"}, {})),
        prelude.encode(Prelude(copies, {"packs/x/0": b"of no segment"})),
    ):
        bucket.objects[name] = damaged
        assert await bucket.verify() == {name: Verdict.WRONG}
    await bucket.repair()
    assert bucket.named("profiles/") == [bucket.segment]


async def test_a_damaged_list_is_wrong(bucket: Bucket) -> None:
    name = condemned.name_of(condemned.encode(["packs/a"]), NOW)
    bucket.objects[name] = b"damaged"
    assert await bucket.verify() == {name: Verdict.WRONG}
    await bucket.repair()


@pytest.mark.parametrize("prefix", ["manifests/ns/one", "packs/", "profiles/", "preludes/", "condemned/"])
async def test_what_is_larger_than_it_may_be_is_wrong_and_goes(bucket: Bucket, prefix: str) -> None:
    data = condemned.encode(["packs/a"])
    await bucket.memory.create(condemned.name_of(data, NOW), data)
    (name,) = bucket.named(prefix)

    class Bounded(RecordingStore):
        async def get(self, asked: str, part: range | None = None) -> bytes:
            if asked == name:
                raise Corrupt(f"{name} has more bytes than it may")
            return await super().get(asked, part)

    bucket.store = Bounded(bucket.memory)
    assert (await bucket.verify(repair=True))[name] is Verdict.WRONG
    assert name not in bucket.objects
    await bucket.repair()


@pytest.mark.parametrize("prefix", ["manifests/", "packs/", "profiles/", "preludes/", "condemned/"])
async def test_what_arrives_damaged_is_read_once_more(bucket: Bucket, prefix: str) -> None:
    data = condemned.encode(["packs/a"])
    await bucket.memory.create(condemned.name_of(data, NOW), data)
    before = dict(bucket.objects)
    store = Damaging(bucket.memory, prefix)
    bucket.store = RecordingStore(store)
    assert await bucket.verify(repair=True) == {}
    assert store.damaged == set(bucket.named(prefix))
    assert bucket.objects == before


async def test_a_wrong_slot_below_another_leaves_a_tombstone(bucket: Bucket) -> None:
    await bucket.memory.create(slot("one", 1), bucket.objects[slot("one")])
    bucket.objects[slot("one")] = b"damaged"
    await bucket.repair()
    assert bucket.objects[slot("one")] == manifest.TOMBSTONE
    assert slot("one", 1) in bucket.objects


async def test_an_empty_slot_below_another_is_missing(bucket: Bucket) -> None:
    await bucket.memory.create(slot("small", 2), bucket.objects[slot("small")])
    assert await bucket.verify() == {slot("small", 1): Verdict.MISSING}
    await bucket.repair()
    assert bucket.objects[slot("small", 1)] == manifest.TOMBSTONE


async def test_junk_in_a_high_slot_is_wrong_and_no_slot_below_it_is_missing(bucket: Bucket) -> None:
    before = dict(bucket.objects)
    await bucket.memory.create(slot("one", MAX_SLOTS - 1), b"junk")
    assert await bucket.verify() == {slot("one", MAX_SLOTS - 1): Verdict.WRONG}
    await bucket.repair()
    assert bucket.objects == before


async def test_a_pack_that_only_a_profile_names_is_read(bucket: Bucket) -> None:
    pack, segment = await bucket.pack_anew()
    assert await bucket.verify() == {}
    whole = bucket.objects[pack]
    bucket.objects[pack] = bytes(len(whole))
    assert await bucket.verify() == {pack: Verdict.WRONG, segment: Verdict.MISSING}
    assert await bucket.verify(sample=100) == {}
    del bucket.objects[pack]
    assert await bucket.verify() == {segment: Verdict.MISSING}
    bucket.objects[pack] = bytes(len(whole))
    await bucket.repair()
    assert not {pack, segment} & bucket.objects.keys()
    assert bucket.segment in bucket.objects


@pytest.mark.parametrize("offset", [1, (1 << 64) - 1])
async def test_a_frame_that_is_not_what_a_segment_says_is_wrong(bucket: Bucket, offset: int) -> None:
    pack, segment = await bucket.pack_anew(offset)
    assert await bucket.verify() == {segment: Verdict.WRONG}
    await bucket.repair()
    assert segment not in bucket.objects
    assert pack in bucket.objects


async def test_what_nothing_names_is_said_and_left_to_a_clean_up(bucket: Bucket) -> None:
    cache = Cache(bucket.memory, DiskTier(Path(str(bucket._folder) + "-2"), 1 << 30), Machine(), NO_KEYS)
    made = await cache.pack([Result("ns", "dies", {"a": content_of("a", 5000)})])
    assert await bucket.verify() == {}
    bucket.now += 2 * 86_400
    bucket.objects["README"] = b"ours"
    expected = {names.pack_name(made.digest): Verdict.UNREFERENCED, "README": Verdict.UNREFERENCED}
    assert await bucket.verify() == expected
    assert await bucket.verify(repair=True) == expected
    assert expected.keys() <= bucket.objects.keys()


async def test_a_sample_reads_so_many(bucket: Bucket) -> None:
    bucket.store.requests.clear()
    assert await bucket.verify(sample=1) == {}
    assert sum(request.startswith("GET manifests/") for request in bucket.store.requests) == 1


async def test_what_is_stored_meanwhile_is_not_missing(bucket: Bucket) -> None:
    """A segment that is listed names what came after the manifests were listed."""

    class Late(RecordingStore):
        async def list(self, prefix: str) -> AsyncIterator[Listed]:
            async for listed in super().list(prefix):
                if not listed.name.startswith(("manifests/ns/two", "packs/")):
                    yield listed

    found: list[Finding] = []
    await verify(Late(bucket.memory), NO_KEYS, found.append)
    assert found == []
