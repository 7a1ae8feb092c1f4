"""A state machine: two machines, one bucket, every kind of damage; a dictionary knows what is right.

Never a wrong byte. A miss only where the bucket lost or damaged what the answer needs.
"""

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple, TypeVar

import msgspec
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from s3cache import manifest, names, pack
from s3cache.cache import Cache
from s3cache.digest import raw_digest_of
from s3cache.errors import Corrupt, S3CacheError
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine
from s3cache.manifest import Entry, Manifest, Place, Result
from s3cache.namespaces import Rule, rule_of
from s3cache.pack import PackFrame
from s3cache.prefetch import ranges
from s3cache.tier import DiskTier
from tests.memory import MemoryStore

T = TypeVar("T")

LIMIT = 6_000
INLINE_BYTES = 250
READ_BYTES = 1_500
CONTENTS = [
    b"",
    b"small",
    b"other",
    random.Random(1).randbytes(600),
    random.Random(2).randbytes(600),
    random.Random(3).randbytes(2_500),
    random.Random(4).randbytes(9_000),
]
ISAS = ["avx2", "avx512"]
MEMBERS = ["a", "dir/b"]

keys = st.tuples(st.sampled_from(["fx-graph", "dynamo-pgo"]), st.sampled_from(["one", "two"]))
choices = st.dictionaries(st.sampled_from(MEMBERS), st.integers(0, len(CONTENTS) - 1), min_size=1)
requirements = st.sampled_from([{}, *({"isa": isa} for isa in ISAS)])


class Draft(NamedTuple):
    """A result that says which contents its members have; few, so that results meet each other."""

    key: tuple[str, str]
    choice: dict[str, int]
    variant: str
    requires: dict[str, str]
    on_demand: bool

    def result(self) -> Result:
        return Result(
            *self.key,
            {name: CONTENTS[number] for name, number in self.choice.items()},
            self.variant if rule_of(self.key[0]) is Rule.FIRST else "",
            self.requires,
            on_demand=frozenset(MEMBERS[1:] if self.on_demand else ()),
        )


drafts = st.builds(
    Draft,
    key=keys,
    choice=choices,
    variant=st.sampled_from(["", "v"]),
    requires=requirements,
    on_demand=st.booleans(),
)
machines = st.sampled_from([0, 1])
picks = st.integers(0, 1 << 30)


class Bucket(MemoryStore):
    """Remembers what was stored, so that damage can be told, and sees to it that nothing else goes."""

    def __init__(self) -> None:
        super().__init__()
        self.pristine: dict[str, bytes] = {}

    async def create(self, name: str, data: bytes) -> bool:
        created = await super().create(name, data)
        if created:
            self.pristine[name] = data
        return created

    async def delete(self, name: str) -> None:
        assert not self.is_intact(name), f"{name} was deleted, and it was right"
        await super().delete(name)

    def is_intact(self, name: str) -> bool:
        return name in self.objects and self.objects[name] == self.pristine[name]


class StoreMachine(RuleBasedStateMachine):
    """What two machines may do to a cache, and what may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.loop = asyncio.Runner()
        self.bounds = manifest.INLINE_BYTES, pack.READ_BYTES
        manifest.INLINE_BYTES, pack.READ_BYTES = INLINE_BYTES, READ_BYTES
        self.bucket = Bucket()
        self.caches: list[Cache] = []
        # The model: what lies in each slot of each key.
        self.stored: dict[tuple[str, str], dict[int, Result]] = {}

    def teardown(self) -> None:
        manifest.INLINE_BYTES, pack.READ_BYTES = self.bounds
        self.loop.close()
        shutil.rmtree(self.folder)

    def run_async(self, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await work

        return self.loop.run(run())

    def tier(self, machine: int) -> DiskTier:
        return DiskTier(self.folder / str(machine), LIMIT)

    def new_cache(self, number: int) -> Cache:
        machine = Machine()
        machine.learn("isa", lambda: ISAS[number])
        return Cache(self.bucket, self.tier(number), machine, NO_KEYS)

    def variants(
        self, machine: int, key: tuple[str, str], members: Collection[str] | None = None
    ) -> dict[int, Entry]:
        """Return what a machine finds under a key; all of it is right, and nothing is missing."""

        async def collect(variants: AsyncIterator[Entry]) -> list[Entry]:
            return [entry async for entry in variants]

        entries = self.run_async(collect(self.caches[machine].variants(*key, members)))
        found = {entry.slot: entry for entry in entries}
        expected = self.expected(machine, key, members)
        for slot, entry in found.items():
            assert entry == expected[slot]
        for slot in expected:
            assert slot in found or not self.is_intact(key, slot), f"slot {slot} of {key} is missing"
        return found

    def expected(
        self, machine: int, key: tuple[str, str], members: Collection[str] | None
    ) -> dict[int, Entry]:
        """Return what a machine is to find under a key where nothing is lost."""
        return {
            slot: entry_of(result, slot, members)
            for slot, result in self.stored.get(key, {}).items()
            if result.requires in ({}, {"isa": ISAS[machine]})
        }

    def manifest(self, key: tuple[str, str], slot: int) -> Manifest:
        """Return the manifest that was stored in a slot."""
        return manifest.decode(self.bucket.pristine[names.manifest_name(*key, slot)], NO_KEYS)

    def is_intact(self, key: tuple[str, str], slot: int) -> bool:
        """Return whether the bucket has all that a slot's entry needs."""
        needed = [names.manifest_name(*key, slot)]
        needed += [names.pack_name(place.pack) for place in self.manifest(key, slot).frames]
        return all(map(self.bucket.is_intact, needed))

    @initialize()
    def start(self) -> None:
        self.caches = [self.new_cache(0), self.new_cache(1)]

    @rule(machine=machines, key=keys, members=st.none() | st.sets(st.sampled_from(MEMBERS)))
    def get(self, machine: int, key: tuple[str, str], members: set[str] | None) -> None:
        first = self.run_async(self.caches[machine].get(*key, members))
        for slot, entry in sorted(self.expected(machine, key, members).items()):
            if first and slot == first.slot:
                assert first == entry
                break
            assert not self.is_intact(key, slot), f"slot {slot} of {key} is missing"
        else:
            assert first is None

    @rule(machine=machines, key=keys, members=st.none() | st.sets(st.sampled_from(MEMBERS)))
    def get_all(self, machine: int, key: tuple[str, str], members: set[str] | None) -> None:
        self.variants(machine, key, members)

    @rule(machine=machines, batch=st.lists(drafts, min_size=1, max_size=3))
    def put(self, machine: int, batch: list[Draft]) -> None:
        self.put_all(machine, [draft.result() for draft in batch])

    def put_all(self, machine: int, batch: list[Result]) -> None:
        slots = self.run_async(self.caches[machine].put_all(batch))
        for result, slot in zip(batch, slots, strict=True):
            assert slot is not None
            key = (result.namespace, result.key)
            there = self.manifest(key, slot)
            assert there.stands_for(manifest.variant_of(result), result.requires, result.members)
            if slot not in self.stored.setdefault(key, {}):
                # Of two results for one variant in one batch, either may be first.
                self.stored[key][slot] = next(
                    first
                    for first, taken in zip(batch, slots, strict=True)
                    if (first.namespace, first.key, taken) == (*key, slot) and is_of(there, first)
                )
            if rule_of(key[0]) is not Rule.FIRST:
                assert self.stored[key][slot].members == result.members

    @rule(machine=machines, draft=drafts)
    def look_up_and_put_on_a_miss(self, machine: int, draft: Draft) -> None:
        """What a compiler does, which makes the same again. Whatever was broken before, it is mended."""
        if not self.variants(machine, draft.key, MEMBERS):
            made = next(iter(self.stored.get(draft.key, {}).values()), draft.result())
            self.put_all(machine, [msgspec.structs.replace(made, variant="", requires={})])
        assert self.variants(machine, draft.key, MEMBERS)

    @rule(machine=machines, key=keys, members=st.none() | st.sets(st.sampled_from(MEMBERS)))
    def fill(self, machine: int, key: tuple[str, str], members: set[str] | None) -> None:
        for slot in self.stored.get(key, {}):
            with suppress(S3CacheError):
                self.run_async(self.caches[machine].fill(self.manifest(key, slot), slot, members))

    @rule(machine=machines, key=keys)
    def prefetch(self, machine: int, key: tuple[str, str]) -> None:
        """Fetch the frames of a key, as its profile names them."""
        places = {
            (place.pack, place.offset): place
            for slot in self.stored.get(key, {})
            for place in self.manifest(key, slot).frames
        }
        frames = [
            PackFrame(place, raw_digest_of(self.pristine_part(place)), key[0], {})
            for _, place in sorted(places.items())
        ]
        for run in ranges(frames):
            try:
                self.run_async(self.caches[machine].fetch(run))
            except S3CacheError:
                assert not self.bucket.is_intact(names.pack_name(run[0].place.pack))

    def pristine_part(self, place: Place) -> bytes:
        """Return the bytes of a frame as they were stored."""
        data = self.bucket.pristine[names.pack_name(place.pack)]
        return data[place.offset : place.offset + place.length]

    @rule(machine=machines)
    def restart(self, machine: int) -> None:
        self.caches[machine] = self.new_cache(machine)

    @rule(machine=machines)
    def start_on_a_fresh_machine(self, machine: int) -> None:
        shutil.rmtree(self.folder / str(machine))
        self.caches[machine] = self.new_cache(machine)

    @rule(machine=machines, pick=picks)
    def evict(self, machine: int, pick: int) -> None:
        tier = self.tier(machine)
        if held := tier.names():
            tier.remove(held[pick % len(held)])

    @rule(machine=machines, pick=picks, size=st.integers(0, 100))
    def corrupt_a_tier_file(self, machine: int, pick: int, size: int) -> None:
        if held := self.tier(machine).names():
            path = self.folder / str(machine) / "objects" / held[pick % len(held)]
            data = path.read_bytes()
            # Of the same size: nobody may change what the tier holds behind its back and be counted.
            place = size % len(data)
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])

    @rule(machine=machines, garbage=st.binary(max_size=12))
    def corrupt_the_usage(self, machine: int, garbage: bytes) -> None:
        with suppress(FileNotFoundError):
            path = self.folder / str(machine) / "usage"
            path.write_bytes(garbage) if len(garbage) != 9 else path.unlink()

    @rule(pick=picks, kept=st.none() | st.integers(0, 50))
    def damage_an_object_of_the_bucket(self, pick: int, kept: int | None) -> None:
        """Truncate an object, flip a byte of a pack or lose one; a manifest is damaged so that it shows."""
        if not self.bucket.objects:
            return
        name = sorted(self.bucket.objects)[pick % len(self.bucket.objects)]
        data = self.bucket.objects[name]
        if name.startswith("packs/"):
            if kept is None:
                del self.bucket.objects[name]
            elif pick % 2 or not data:
                self.bucket.objects[name] = data[:kept]
            else:
                place = pick % len(data)
                self.bucket.objects[name] = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        else:
            self.bucket.objects[name] = data[: (kept or 0) % len(data)] if data else b""

    @invariant()
    def the_tier_stays_within_its_limit(self) -> None:
        for folder in self.folder.iterdir():
            held = sum(
                Path(parent, name).stat().st_size
                for part in ("objects", "quarantine", "incoming")
                for parent, _, files in os.walk(folder / part)
                for name in files
            )
            assert held <= LIMIT

    @invariant()
    def no_damaged_manifest_can_be_read(self) -> None:
        for name, data in self.bucket.objects.items():
            if name.startswith("manifests/") and data != self.bucket.pristine[name]:
                with suppress(Corrupt):
                    manifest.decode(data, NO_KEYS)
                    raise AssertionError("the damage does not show")


def entry_of(result: Result, slot: int, members: Collection[str] | None) -> Entry:
    """Return what a result comes back as, with these members, or those that are not on demand."""
    held = {
        name: content
        for name, content in result.members.items()
        if (name not in result.on_demand if members is None else name in members)
    }
    variant = manifest.variant_of(result)
    return Entry(result.namespace, result.key, slot, variant, dict(result.requires), held)


def is_of(there: Manifest, result: Result) -> bool:
    """Return whether a manifest is that of a result."""
    expected = [(n, raw_digest_of(content), n in result.on_demand) for n, content in result.members.items()]
    return [(member.name, member.digest, member.on_demand) for member in there.members] == expected


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    # Without the phase that explains: it takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
