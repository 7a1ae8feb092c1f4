"""Trust: whose results a machine uses, on disk as in the bucket, and that nothing else blocks a key."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from s3cache import catalog, envelope, keyring, ledger, manifest, names, pack, profile
from s3cache.cache import Cache
from s3cache.catalog import Catalog, Reference
from s3cache.errors import Corrupt, Forbidden, Untrusted
from s3cache.keyring import NO_KEYS, Keyring
from s3cache.ledger import Ledger
from s3cache.local import LocalEntries
from s3cache.machine import Machine
from s3cache.manifest import TOMBSTONE, Manifest, Result
from s3cache.profile import Segment
from s3cache.tier import DiskTier
from tests.signing import ALICE, BOB, MALLORY, signs, trusts
from tests.wrappers import WatchedBucket

pytestmark = pytest.mark.anyio

PROFILE = "profiles/job/linux-x86_64/"
GOOD = {"a": b"good"}
EVIL = {"a": b"evil"}
SLOTS = [names.manifest_name("ns", "key", slot) for slot in range(3)]


class Bucket(WatchedBucket):
    """A bucket, and machines that trust and sign."""

    def machine(self, keyring: Keyring) -> Cache:
        """Return the cache of a machine that has nothing yet."""
        return Cache(self.store, self.new_tier(64 << 20), Machine(), keyring)

    def last_tier(self) -> DiskTier:
        return DiskTier(self._folder / str(self._machines), 64 << 20)

    def hot_machine(self, keyring: Keyring) -> Cache:
        """Return the cache of the last machine, restarted with other keys."""
        return Cache(self.store, self.last_tier(), Machine(), keyring)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "machines")


async def members(cache: Cache, key: str = "key") -> dict[str, bytes] | None:
    entry = await cache.get("ns", key)
    return entry.members if entry else None


async def on_disk(bucket: Bucket, keyring: Keyring) -> dict[str, bytes] | None:
    entry = LocalEntries(bucket.last_tier(), ["catalogs/job/linux-x86_64/"], keyring).find("ns", "key", 0)
    return entry.members if entry else None


# Whose results are used.


@pytest.mark.parametrize("large", [False, True], ids=["inline", "packed"])
async def test_what_a_trusted_key_signed_is_used(bucket: Bucket, large: bool) -> None:
    result = {"a": bytes(range(256)) * 400} if large else GOOD
    await bucket.machine(signs(ALICE)).put("ns", "key", result)
    assert await members(bucket.machine(trusts(ALICE))) == result
    assert await members(bucket.machine(trusts(BOB, ALICE))) == result
    assert await members(bucket.machine(NO_KEYS)) == result


@pytest.mark.parametrize(
    "writer",
    [NO_KEYS, signs(MALLORY), signs(ALICE, tenant="other")],
    ids=["nobody", "a stranger", "for another prefix"],
)
async def test_what_nobody_trusted_signed_is_a_miss(bucket: Bucket, writer: Keyring) -> None:
    await bucket.machine(writer).put("ns", "key", EVIL)
    assert await members(bucket.machine(trusts(ALICE))) is None
    assert not [name for name in bucket.last_tier().names() if "manifests" in name]


@pytest.mark.parametrize(
    ("found", "counted"),
    [(TOMBSTONE, {}), (b"unsigned", {"untrusted": 1})],
    ids=["a tombstone", "an unsigned one"],
)
async def test_what_a_second_try_cannot_mend_is_not_tried_again(
    bucket: Bucket, found: bytes, counted: dict[str, int]
) -> None:
    await bucket.machine(NO_KEYS).put("ns", "key", EVIL)
    if found == TOMBSTONE:
        bucket.objects[SLOTS[0]] = TOMBSTONE
    counts = Ledger()
    ledger.charge(counts)
    bucket.store.requests.clear()
    assert await members(bucket.machine(trusts(ALICE))) is None
    assert bucket.store.requests == [f"GET {SLOTS[0]}", f"GET {SLOTS[1]}"]
    assert counts.as_dict()["faults"] == counted


async def test_a_key_can_be_replaced_by_another_and_revoked(bucket: Bucket) -> None:
    """Old and new are trusted at once, then the new one signs, then the old one is revoked."""
    await bucket.machine(signs(ALICE)).put("ns", "old", GOOD)
    both = signs(BOB, ALICE)
    assert await members(bucket.machine(both), "old") == GOOD
    assert await bucket.machine(both).put("ns", "old", GOOD) == 0
    await bucket.machine(both).put("ns", "new", GOOD)
    assert await members(bucket.machine(signs(ALICE, BOB)), "new") == GOOD
    revoked = bucket.machine(signs(BOB))
    assert await members(revoked, "new") == GOOD
    assert await members(revoked, "old") is None
    assert await revoked.put("ns", "old", GOOD) == 1
    assert await members(revoked, "old") == GOOD


async def test_who_trusts_some_and_cannot_sign_stores_nothing(bucket: Bucket) -> None:
    with pytest.raises(Forbidden, match="S3CACHE_SIGNING_KEY"):
        await bucket.machine(trusts(ALICE)).put("ns", "key", GOOD)
    assert bucket.objects == {}


# Replay.


async def test_a_manifest_that_is_copied_under_another_key_is_refused(bucket: Bucket) -> None:
    await bucket.machine(signs(ALICE)).put("ns", "key", GOOD)
    bucket.objects[names.manifest_name("ns", "other", 0)] = bucket.objects[SLOTS[0]]
    bucket.objects[names.manifest_name("ns2", "key", 0)] = bucket.objects[SLOTS[0]]
    cache = bucket.machine(trusts(ALICE))
    assert await members(cache, "other") is None
    assert await cache.get("ns2", "key") is None


async def test_a_segment_of_one_job_is_not_taken_for_anothers(bucket: Bucket) -> None:
    data = profile.encode(Segment([], catalog.build([], signs(ALICE)), profile=PROFILE), signs(ALICE))
    for prefix in ("profiles/other/linux-x86_64/", "profiles/job/linux-aarch64/"):
        name = profile.new_segment_name(prefix, data)
        bucket.objects[name] = data
        with pytest.raises(Untrusted, match="is a segment of"):
            await bucket.machine(trusts(ALICE)).segment(name)
        assert bucket.last_tier().names() == []


async def test_a_catalog_is_not_taken_out_of_its_segment(bucket: Bucket) -> None:
    """A segment that a stranger signed around a catalog of a trusted key is untrusted."""
    data = profile.encode(Segment([], catalog.build([], signs(ALICE)), profile=PROFILE), signs(MALLORY))
    other = profile.encode(Segment([], catalog.build([], signs(MALLORY)), profile=PROFILE), signs(ALICE))
    for forged in data, other:
        with pytest.raises(Untrusted):
            profile.decode(profile.new_segment_name(PROFILE, forged), forged, trusts(ALICE))


# On disk.


async def test_what_a_revoked_key_signed_is_a_miss_on_a_hot_machine_too(bucket: Bucket) -> None:
    await bucket.machine(signs(BOB, ALICE)).put("ns", "key", GOOD)
    assert await on_disk(bucket, trusts(BOB)) == GOOD
    assert await on_disk(bucket, trusts(ALICE)) is None
    assert await members(bucket.hot_machine(trusts(ALICE))) is None


async def test_what_is_unsigned_on_disk_is_a_miss_once_keys_are_set(bucket: Bucket) -> None:
    await bucket.machine(NO_KEYS).put("ns", "key", EVIL)
    assert await on_disk(bucket, NO_KEYS) == EVIL
    assert await on_disk(bucket, trusts(ALICE)) is None
    assert await members(bucket.hot_machine(trusts(ALICE))) is None


async def test_what_was_replaced_is_found_though_the_disk_has_the_old_one(
    bucket: Bucket,
) -> None:
    await bucket.machine(NO_KEYS).put("ns", "key", EVIL)
    hot = bucket.last_tier()
    del bucket.objects[SLOTS[0]]
    await bucket.machine(signs(ALICE)).put("ns", "key", GOOD)
    cache = Cache(bucket.store, hot, Machine(), trusts(ALICE))
    assert await members(cache) is None
    assert await members(cache) == GOOD


def references(writer: Keyring) -> list[Reference]:
    """Return references to results as others read them."""
    built = manifest.inline(Result("ns", "key", GOOD), {})
    assert built is not None
    return [Reference(0, manifest.decode(manifest.encode(built, writer), NO_KEYS))]


def put_catalog(tier: DiskTier, *packed: Reference, writer: Keyring) -> None:
    tier.write("catalogs/job/linux-x86_64/1", catalog.build(list(packed), writer))


async def test_a_catalog_on_disk_is_used_if_a_trusted_key_signed_it(bucket: Bucket) -> None:
    put_catalog(bucket.new_tier(64 << 20), *references(signs(ALICE)), writer=signs(ALICE))
    assert await on_disk(bucket, trusts(ALICE)) == GOOD
    assert await on_disk(bucket, trusts(BOB)) is None


@pytest.mark.parametrize("writer", [NO_KEYS, signs(BOB)], ids=["nobody", "a revoked key"])
async def test_a_trusted_catalog_vouches_for_nobody_else(bucket: Bucket, writer: Keyring) -> None:
    put_catalog(bucket.new_tier(64 << 20), *references(writer), writer=signs(ALICE))
    assert await on_disk(bucket, trusts(ALICE)) is None


async def test_a_catalog_of_5000_entries_costs_one_check(bucket: Bucket) -> None:
    (one,) = references(signs(ALICE))
    many = [
        Reference(0, Manifest("ns", f"{number}", one.manifest.members, signer=one.manifest.signer))
        for number in range(5000)
    ]
    put_catalog(bucket.new_tier(64 << 20), *many, writer=signs(ALICE))
    keyring._check.cache_clear()
    entries = LocalEntries(bucket.last_tier(), ["catalogs/job/linux-x86_64/"], trusts(ALICE))
    assert all(entries.find("ns", f"{number}", 0) for number in range(5000))
    assert keyring._check.cache_info().misses == 1


async def test_a_packs_frames_are_those_that_were_signed(bucket: Bucket) -> None:
    large = {"a": bytes(range(256)) * 400}
    await bucket.machine(signs(ALICE)).put("ns", "key", large)
    (name,) = [name for name in bucket.objects if name.startswith("packs/")]
    forged = pack.build([Result("ns", "key", {"a": bytes(102_400)})], {})
    bucket.objects[name] = forged.data.ljust(len(bucket.objects[name]), b"\0")
    assert await members(bucket.machine(trusts(ALICE))) is None


# A slot that cannot be used never blocks its key.


def damaged(data: bytes) -> bytes:
    return data[:-1]


def unsigned(data: bytes) -> bytes:
    return manifest.encode(manifest.decode(data, NO_KEYS), NO_KEYS)


def revoked(data: bytes) -> bytes:
    return manifest.encode(manifest.decode(data, NO_KEYS), signs(MALLORY))


def of_another_key(data: bytes) -> bytes:
    built = manifest.inline(Result("ns", "other", GOOD), {})
    assert built is not None
    return manifest.encode(built, signs(ALICE))


def empty(data: bytes) -> bytes:
    return b""


def endless(data: bytes) -> bytes:
    return b"\xdd\xff\xff\xff\xff" + data


unusable = pytest.mark.parametrize("make", [damaged, unsigned, revoked, of_another_key, empty, endless])


@unusable
@pytest.mark.parametrize("large", [False, True], ids=["inline", "packed"])
async def test_a_slot_that_cannot_be_used_does_not_block_its_key(
    bucket: Bucket, make: Callable[[bytes], bytes], large: bool
) -> None:
    result = {"a": bytes(range(256)) * 400} if large else GOOD
    await bucket.machine(signs(ALICE)).put("ns", "key", result)
    bucket.objects[SLOTS[0]] = make(bucket.objects[SLOTS[0]])
    assert await members(bucket.machine(trusts(ALICE))) is None
    assert await bucket.machine(signs(ALICE)).put("ns", "key", result) == 1
    assert await members(bucket.machine(trusts(ALICE))) == result


async def test_a_slot_whose_pack_is_gone_does_not_block_its_key(bucket: Bucket) -> None:
    large = {"a": bytes(range(256)) * 400}
    await bucket.machine(signs(ALICE)).put("ns", "key", large)
    for name in [name for name in bucket.objects if name.startswith("packs/")]:
        del bucket.objects[name]
    writer = bucket.machine(signs(ALICE))
    assert await members(writer) is None
    assert await writer.put("ns", "key", large) == 1
    assert await members(bucket.machine(trusts(ALICE))) == large


@unusable
async def test_readers_find_what_lies_behind_a_slot_that_cannot_be_used(
    bucket: Bucket, make: Callable[[bytes], bytes]
) -> None:
    writer = bucket.machine(signs(ALICE))
    await writer.put("ns", "key", EVIL, variant="1")
    await writer.put("ns", "key", GOOD, variant="2")
    bucket.objects[SLOTS[0]] = make(bucket.objects[SLOTS[0]])
    assert await members(bucket.machine(trusts(ALICE))) == GOOD


# Nothing is decoded, grown or run before its signature was checked.


async def test_nothing_of_an_untrusted_object_is_decoded(bucket: Bucket) -> None:
    await bucket.machine(signs(MALLORY)).put("ns", "key", EVIL)
    forged = profile.encode(
        Segment([], catalog.build(references(signs(MALLORY)), signs(MALLORY)), profile=PROFILE),
        signs(MALLORY),
    )
    name = profile.new_segment_name(PROFILE, forged)
    bucket.objects[name] = forged
    with (
        mock.patch("s3cache.frame.decompress", side_effect=AssertionError),
        mock.patch("s3cache.manifest.check", side_effect=AssertionError),
    ):
        cache = bucket.machine(trusts(ALICE))
        assert await members(cache) is None
        with pytest.raises(Untrusted):
            await cache.segment(name)


def test_a_manifest_that_names_another_signer_is_untrusted() -> None:
    (reference,) = references(signs(ALICE))
    body = manifest._encoder.encode(reference.manifest)
    with pytest.raises(Corrupt, match="another signer"):
        manifest.decode(envelope.seal("manifest", body, signs(BOB)), trusts(ALICE, BOB))


def test_a_catalog_says_who_signed_what_it_refers_to() -> None:
    found = Catalog(catalog.build(references(signs(BOB)), signs(ALICE)), trusts(ALICE, BOB))
    assert [each.manifest.signer for each in found.references()] == [BOB.public.id]
