"""Entries from the disk: what is found there, and that nothing but None comes of damage."""

import os
import random
from pathlib import Path

import pytest

from s3cache import catalog, frame, local, manifest, names, pack
from s3cache.catalog import Reference
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.manifest import Entry, Manifest, Result
from s3cache.pack import Pack
from s3cache.tier import DiskTier

SMALL = {"a.json": b"{}", "b.bin": b"\0" * 100}
OTHER = {"a.json": b"[]"}
LARGE = {"a.cubin": random.Random(1).randbytes(50_000), "b.cubin": random.Random(2).randbytes(50_000)}
ON_DEMAND = frozenset(["c.ttir"])
PREFIX = "catalogs/job/linux-x86_64/"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.fixture
def tier(root: Path) -> DiskTier:
    return DiskTier(root, 256 << 20)


def inline(members: dict[str, bytes] = SMALL, key: str = "key") -> Manifest:
    """Return the manifest of a small result."""
    built = manifest.inline(Result("ns", key, members), {})
    assert built is not None
    return built


def packed(tier: DiskTier, *results: Result) -> Pack:
    """Return the pack of results, with its frames in the tier."""
    made = pack.build(results, {})
    for place in (packed.place for packed in made.frames):
        tier.write(place.name, made.data[place.offset : place.offset + place.length])
    return made


def large(tier: DiskTier) -> Manifest:
    """Return the manifest of a result of two frames, one of them on demand, with both in the tier."""
    result = Result("ns", "key", {**LARGE, "c.ttir": b"on demand" * 1000}, on_demand=ON_DEMAND)
    return packed(tier, result).manifests[0]


def add(tier: DiskTier, built: Manifest, slot: int = 0) -> None:
    """Add a manifest that lies by itself."""
    tier.write(names.manifest_name(built.namespace, built.key, slot), manifest.encode(built, NO_KEYS))


def add_catalog(tier: DiskTier, stamp: int, *built: Manifest) -> None:
    """Add the catalog of the segment of some time, with slot 0 of keys."""
    tier.write(
        f"{PREFIX}{stamp:013d}-00000000", catalog.build([Reference(0, each) for each in built], NO_KEYS)
    )


def damage(root: Path, name: str) -> None:
    """Change a byte of an object."""
    path = root / "objects" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace(tier: DiskTier, name: str, data: bytes) -> None:
    """Put other content in the place of an object; it matches the digest it is kept with."""
    tier.remove(name)
    tier.write(name, data)


def reads(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of all that is read from now on is added."""
    names_read: list[str] = []
    read = tier.read

    def record(name: str) -> bytes | None:
        names_read.append(name)
        return read(name)

    monkeypatch.setattr(tier, "read", record)
    return names_read


def members(entry: Entry | None) -> dict[str, bytes]:
    assert entry is not None
    return entry.members


# Manifests.


def test_a_manifest_that_lies_by_itself_is_found(tier: DiskTier) -> None:
    add(tier, inline(), slot=2)
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    assert found.manifest("ns", "key", 2) == inline()
    assert found.manifest("ns", "key", 0) is None
    assert found.manifest("ns2", "key", 2) is None


def test_a_manifest_that_the_bucket_does_not_take_is_found_after_one_that_came_from_there(
    tier: DiskTier,
) -> None:
    name = names.manifest_name("ns", "key", 0)
    tier.write(names.unsent_name(name), manifest.encode(inline(OTHER), NO_KEYS))
    entries = LocalEntries(tier, (), NO_KEYS, unsent=True)
    assert entries.manifest("ns", "key", 0) == inline(OTHER)
    add(tier, inline())
    assert entries.manifest("ns", "key", 0) == inline()


def test_what_is_said_of_the_bucket_is_not_said_of_what_it_does_not_take(tier: DiskTier) -> None:
    name = names.manifest_name("ns", "key", 0)
    tier.write(names.unsent_name(name), manifest.encode(inline(), NO_KEYS))
    assert LocalEntries(tier, (), NO_KEYS).manifest("ns", "key", 0) is None


def test_a_manifest_in_a_catalog_is_found(tier: DiskTier) -> None:
    add_catalog(tier, 1, inline(), inline(OTHER, "other"))
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    assert found.manifest("ns", "key", 0) == inline()
    assert found.manifest("ns", "other", 0) == inline(OTHER, "other")
    assert found.manifest("ns", "key", 1) is None
    assert found.manifest("ns", "absent", 0) is None


def test_a_manifest_in_a_catalog_counts_before_one_by_itself(tier: DiskTier) -> None:
    add_catalog(tier, 1, inline(OTHER))
    add(tier, inline())
    assert LocalEntries(tier, [PREFIX], NO_KEYS).manifest("ns", "key", 0) == inline(OTHER)


@pytest.mark.parametrize("is_packed_anew_here", [True, False])
def test_what_was_packed_anew_is_found_where_it_is(tier: DiskTier, is_packed_anew_here: bool) -> None:
    members = {"a": random.Random(1).randbytes(10_000)}
    result = Result("ns", "key", members)
    old, new = pack.build([result], {}), pack.build([result, Result("ns", "other", members)], {})
    add(tier, old.manifests[0])
    add_catalog(tier, 1, new.manifests[0])
    here = new if is_packed_anew_here else old
    for place in (packed.place for packed in here.frames):
        tier.write(place.name, here.data[place.offset : place.offset + place.length])
    entry = LocalEntries(tier, [PREFIX], NO_KEYS).find("ns", "key", 0)
    assert entry is not None
    assert entry.members == members


def test_the_newest_catalog_counts(tier: DiskTier) -> None:
    for stamp in 2, 10, 1:
        add_catalog(tier, stamp, inline({"stamp": f"{stamp}".encode()}))
    assert LocalEntries(tier, [PREFIX], NO_KEYS).manifest("ns", "key", 0) == inline({"stamp": b"10"})


def test_what_the_newest_catalog_lacks_is_found_in_an_older_one(tier: DiskTier) -> None:
    add_catalog(tier, 1, inline())
    add_catalog(tier, 2, inline(OTHER, "other"))
    assert LocalEntries(tier, [PREFIX], NO_KEYS).manifest("ns", "key", 0) == inline()


def test_catalogs_of_another_job_do_not_count(tier: DiskTier) -> None:
    add_catalog(tier, 1, inline())
    assert LocalEntries(tier, ["catalogs/jo/linux-x86_64/"], NO_KEYS).manifest("ns", "key", 0) is None
    assert LocalEntries(tier, ["catalogs/job/linux-aarch64/"], NO_KEYS).manifest("ns", "key", 0) is None


# Looking again.


def test_a_catalog_that_came_since_is_found_by_looking_again(tier: DiskTier) -> None:
    add_catalog(tier, 1, inline(OTHER))
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    add_catalog(tier, 2, inline())
    assert found.manifest("ns", "key", 0) == inline(OTHER)
    found.look_again()
    assert found.manifest("ns", "key", 0) == inline()


def test_a_catalog_that_went_since_is_forgotten_by_looking_again(tier: DiskTier) -> None:
    add_catalog(tier, 1, inline())
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    tier.remove(f"{PREFIX}{1:013d}-00000000")
    found.look_again()
    assert found.manifest("ns", "key", 0) is None


def test_looking_again_reads_what_is_new_only(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    add_catalog(tier, 1, inline())
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    add_catalog(tier, 2, inline(OTHER, "other"))
    read = reads(tier, monkeypatch)
    found.look_again()
    assert read == [f"{PREFIX}{2:013d}-00000000"]


def test_a_manifest_that_came_since_is_found_at_once(tier: DiskTier) -> None:
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    add(tier, inline())
    assert found.manifest("ns", "key", 0) == inline()


# Entries.


def test_an_entry_of_inline_members_needs_nothing_else(tier: DiskTier) -> None:
    entry = LocalEntries(tier, [PREFIX], NO_KEYS).entry(inline(), 3)
    assert entry == Entry("ns", "key", 3, "", {}, SMALL)


def test_an_entry_has_the_members_that_are_not_on_demand(tier: DiskTier) -> None:
    assert members(LocalEntries(tier, [PREFIX], NO_KEYS).entry(large(tier), 0)) == LARGE


def test_an_entry_has_only_the_members_that_were_named(tier: DiskTier) -> None:
    built = large(tier)
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    assert members(found.entry(built, 0, ["b.cubin", "unknown"])) == {"b.cubin": LARGE["b.cubin"]}
    assert members(found.entry(built, 0, ["c.ttir"])) == {"c.ttir": b"on demand" * 1000}
    assert members(found.entry(built, 0, [])) == {}


def test_a_frame_is_needed_for_those_that_name_its_members_only(tier: DiskTier) -> None:
    built = large(tier)
    tier.remove(built.frames[1].name)
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    assert members(found.entry(built, 0)) == LARGE
    assert found.entry(built, 0, ["c.ttir"]) is None
    tier.remove(built.frames[0].name)
    assert LocalEntries(tier, [PREFIX], NO_KEYS).entry(built, 0) is None


def test_a_frame_that_came_since_is_found_at_once(tier: DiskTier) -> None:
    built = large(tier)
    data = tier.read(built.frames[0].name)
    assert data is not None
    tier.remove(built.frames[0].name)
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    assert found.entry(built, 0) is None
    tier.write(built.frames[0].name, data)
    assert members(found.entry(built, 0)) == LARGE


# Damage.


def test_a_damaged_manifest_is_none(root: Path, tier: DiskTier) -> None:
    add(tier, inline())
    damage(root, "manifests/ns/key/0")
    assert LocalEntries(tier, [PREFIX], NO_KEYS).manifest("ns", "key", 0) is None
    assert not tier.has("manifests/ns/key/0")


@pytest.mark.parametrize("data", [b"", b"no manifest", manifest.encode(inline(), NO_KEYS)[:-1]])
def test_what_is_no_manifest_is_none(tier: DiskTier, data: bytes) -> None:
    tier.write("manifests/ns/key/0", data)
    assert LocalEntries(tier, [PREFIX], NO_KEYS).manifest("ns", "key", 0) is None


def test_the_manifest_of_another_key_is_none(tier: DiskTier) -> None:
    tier.write("manifests/ns/key/0", manifest.encode(inline(key="other"), NO_KEYS))
    tier.write("manifests/ns2/key/0", manifest.encode(inline(), NO_KEYS))
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    assert found.manifest("ns", "key", 0) is None
    assert found.manifest("ns2", "key", 0) is None


@pytest.mark.parametrize("data", [b"", b"\xff" * 100])
def test_what_is_no_catalog_is_left_out(tier: DiskTier, data: bytes) -> None:
    add_catalog(tier, 1, inline())
    tier.write(f"{PREFIX}{2:013d}-00000000", data)
    assert LocalEntries(tier, [PREFIX], NO_KEYS).manifest("ns", "key", 0) == inline()


def test_a_damaged_catalog_is_left_out(root: Path, tier: DiskTier) -> None:
    add_catalog(tier, 1, inline())
    add_catalog(tier, 2, inline(OTHER))
    damage(root, f"{PREFIX}{2:013d}-00000000")
    assert LocalEntries(tier, [PREFIX], NO_KEYS).manifest("ns", "key", 0) == inline()


def test_a_reference_that_names_what_it_may_not_is_none(tier: DiskTier) -> None:
    add_catalog(tier, 1, inline({}), Manifest("ns", "evil", [manifest.Member("../up", b"", 0)]))
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    assert found.manifest("ns", "evil", 0) is None
    assert found.manifest("ns", "key", 0) == inline({})


def test_a_damaged_frame_is_none(root: Path, tier: DiskTier) -> None:
    built = large(tier)
    damage(root, built.frames[0].name)
    assert LocalEntries(tier, [PREFIX], NO_KEYS).entry(built, 0) is None
    assert not tier.has(built.frames[0].name)


@pytest.mark.parametrize("size", [0, 1000, 100_000, 100_001])
def test_a_frame_that_holds_something_else_is_none(tier: DiskTier, size: int) -> None:
    built = large(tier)
    replace(tier, built.frames[0].name, frame.compress(bytes(size)))
    assert LocalEntries(tier, [PREFIX], NO_KEYS).entry(built, 0) is None


def test_what_is_no_frame_is_none(tier: DiskTier) -> None:
    built = large(tier)
    replace(tier, built.frames[0].name, b"no frame")
    assert LocalEntries(tier, [PREFIX], NO_KEYS).entry(built, 0) is None


# Memory.


def frames_of(tier: DiskTier, sizes: list[int]) -> list[Manifest]:
    """Return the manifests of results that lie in a frame of their own each."""
    results = [
        Result(f"ns{number}", "key", {"a": random.Random(number).randbytes(size)})
        for number, size in enumerate(sizes)
    ]
    return packed(tier, *results).manifests


def test_neighbours_in_a_frame_are_read_from_the_disk_once(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [
        Result("ns", f"{number}", {"a": random.Random(number).randbytes(1000)}) for number in range(20)
    ]
    manifests = packed(tier, *results).manifests
    read = reads(tier, monkeypatch)
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    for built, result in zip(manifests, results, strict=True):
        assert members(found.entry(built, 0)) == result.members
    assert read == [manifests[0].frames[0].name]


def test_what_is_kept_of_grown_frames_is_bounded(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GROWN_BYTES", 10_000)
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    for built in frames_of(tier, [3000] * 20):
        assert found.entry(built, 0) is not None
        assert sum(map(len, found._grown.values())) <= 10_000
    assert len(found._grown) == 3


def test_a_frame_larger_than_the_bound_is_the_only_one_that_is_kept(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GROWN_BYTES", 10_000)
    small, large, last = frames_of(tier, [3000, 20_000, 3000])
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    for built in small, large:
        assert found.entry(built, 0) is not None
    assert [*found._grown] == [large.frames[0].name]
    assert found.entry(last, 0) is not None
    assert [*found._grown] == [last.frames[0].name]


def test_the_frame_that_was_not_used_for_longest_goes_first(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GROWN_BYTES", 10_000)
    built = frames_of(tier, [3000] * 4)
    found = LocalEntries(tier, [PREFIX], NO_KEYS)
    for number in 0, 1, 2, 0, 3:
        assert found.entry(built[number], 0) is not None
    assert [*found._grown] == [built[number].frames[0].name for number in (2, 0, 3)]


def test_frames_on_disk_count_as_used_when_they_are_read(root: Path, tier: DiskTier) -> None:
    built = large(tier)
    path = root / "objects" / built.frames[0].name
    os.utime(path, (1000, 1000))
    assert LocalEntries(tier, [PREFIX], NO_KEYS).entry(built, 0) is not None
    assert path.stat().st_mtime > 1000
