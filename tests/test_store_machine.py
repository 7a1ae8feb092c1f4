"""A state machine: two machines, one bucket, every kind of damage; a dictionary knows what is right.

Never a wrong byte. A miss only where the bucket lost or damaged what the answer needs.
"""

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from s3cache import manifest, names
from s3cache.cache import Cache
from s3cache.errors import Corrupt, S3CacheError
from s3cache.machine import Machine
from s3cache.manifest import Entry
from s3cache.namespaces import Rule, rule_of
from s3cache.stores.memory import MemoryStore
from s3cache.tier import DiskTier

T = TypeVar("T")

LIMIT = 6_000
INLINE_BYTES = 250
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

keys = st.tuples(st.sampled_from(["fx-graph", "dynamo-pgo"]), st.sampled_from(["one", "two"]))
choices = st.dictionaries(st.sampled_from(["a", "dir/b"]), st.integers(0, len(CONTENTS) - 1), min_size=1)
requirements = st.sampled_from([{}, *({"isa": isa} for isa in ISAS)])
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
        self.inline_bytes, manifest.INLINE_BYTES = manifest.INLINE_BYTES, INLINE_BYTES
        self.bucket = Bucket()
        self.caches: list[Cache] = []
        # The model: what lies in each slot of each key.
        self.stored: dict[tuple[str, str], dict[int, Entry]] = {}

    def teardown(self) -> None:
        manifest.INLINE_BYTES = self.inline_bytes
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
        return Cache(self.bucket, self.tier(number), machine)

    def variants(self, machine: int, key: tuple[str, str]) -> dict[int, Entry]:
        """Return what a machine finds under a key; all of it is right, and nothing is missing."""

        async def collect(variants: AsyncIterator[Entry]) -> list[Entry]:
            return [entry async for entry in variants]

        entries = self.run_async(collect(self.caches[machine].variants(*key)))
        found = {entry.slot: entry for entry in entries}
        expected = {
            slot: entry
            for slot, entry in self.stored.get(key, {}).items()
            if entry.requires in ({}, {"isa": ISAS[machine]})
        }
        for slot, entry in found.items():
            assert entry == expected[slot]
        for slot, entry in expected.items():
            assert slot in found or not self.is_intact(entry), f"slot {slot} of {key} is missing"
        return found

    def is_intact(self, entry: Entry) -> bool:
        """Return whether the bucket has all that an entry needs."""
        name = names.manifest_name(entry.namespace, entry.key, entry.slot)
        if not self.bucket.is_intact(name):
            return False
        return all(
            member.inline is not None or self.bucket.is_intact(names.blob_name(member.digest))
            for member in manifest.decode(self.bucket.objects[name]).members
        )

    @initialize()
    def start(self) -> None:
        self.caches = [self.new_cache(0), self.new_cache(1)]

    @rule(machine=machines, key=keys)
    def get(self, machine: int, key: tuple[str, str]) -> None:
        found = self.variants(machine, key)
        first = self.run_async(self.caches[machine].get(*key))
        assert first == next(iter(found.values()), None)

    @rule(
        machine=machines,
        key=keys,
        choice=choices,
        variant=st.sampled_from(["", "v"]),
        requires=requirements,
    )
    def put(
        self,
        machine: int,
        key: tuple[str, str],
        choice: dict[str, int],
        variant: str,
        requires: dict[str, str],
    ) -> None:
        members = {name: CONTENTS[number] for name, number in choice.items()}
        if rule_of(key[0]) is not Rule.FIRST:
            variant = ""
        built, _ = manifest.build(*key, members, variant=variant, requires=requires)
        slot = self.run_async(self.caches[machine].put(*key, members, variant=variant, requires=requires))
        entry = Entry(*key, slot, built.variant, requires, members)
        there = self.stored.setdefault(key, {}).setdefault(slot, entry)
        assert (there.variant, there.requires) == (built.variant, requires)
        if rule_of(key[0]) is not Rule.FIRST:
            assert there.members == members

    @rule(machine=machines, key=keys, choice=choices)
    def look_up_and_put_on_a_miss(self, machine: int, key: tuple[str, str], choice: dict[str, int]) -> None:
        """What a compiler does. Whatever was broken before, the second time at the latest it is mended.

        The first time a blob may be broken that another key has already and nobody has read.
        """
        for _ in range(2):
            if not self.variants(machine, key):
                self.put(machine, key, choice, "", {})
        assert self.variants(machine, key)

    @rule(machine=machines, key=keys)
    def fill(self, machine: int, key: tuple[str, str]) -> None:
        for slot in self.stored.get(key, {}):
            with suppress(S3CacheError):
                self.run_async(self.caches[machine].fill(*key, slot))

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
        """Truncate an object, flip a byte of a blob or lose one; a manifest is damaged so that it shows."""
        if not self.bucket.objects:
            return
        name = sorted(self.bucket.objects)[pick % len(self.bucket.objects)]
        data = self.bucket.objects[name]
        if name.startswith("blobs/"):
            if kept is None:
                del self.bucket.objects[name]
            elif pick % 2 or not data:
                self.bucket.objects[name] = data[:kept]
            else:
                self.bucket.objects[name] = data[:-1] + bytes([data[-1] ^ 1])
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
                    manifest.decode(data)
                    raise AssertionError("the damage does not show")


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    # Without the phase that explains: it takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
