"""Clean-up and verification of a million objects: how much memory they take, and how many requests.

python -m benchmarks.faults.cleaning --objects 1000000

The bucket is made up: its objects are computed from their names whenever one is read. Half of its profiles
are not in use. Exits with 1 when a bar is missed.
"""

import resource
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import lru_cache

import anyio
import click
from rich.console import Console

from benchmarks.bars import Number, setting, table
from s3cache import catalog, frame, manifest, names, profile
from s3cache.catalog import Reference
from s3cache.collection import Terms, collect
from s3cache.digest import DIGEST_BYTES, raw_digest_of
from s3cache.errors import ObjectAbsent
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Manifest, Member, Place
from s3cache.profile import Segment
from s3cache.stores.base import Listed, ObjectStore
from s3cache.verification import verify

DAY = 86_400.0
NOW = 2e9
OLD = NOW - 100 * DAY
RESULTS_OF_A_PACK = 8
RESULTS_OF_A_SEGMENT = 80
SEGMENTS_OF_A_PROFILE = 8
CONTENT_BYTES = 200
MEMORY_MIB = 128


class MadeUp(ObjectStore):
    """So many objects that nobody keeps; what is created is kept, and that something was deleted."""

    def __init__(self, count: int) -> None:
        self.results = int(count / (1 + 1 / RESULTS_OF_A_PACK + 1 / RESULTS_OF_A_SEGMENT))
        self.requests: Counter[str] = Counter()
        self.now = NOW
        self._created: dict[str, tuple[bytes, float]] = {}
        self._deleted = {kind: bytearray(self.results) for kind in ("manifests", "packs", "profiles")}
        self._digests = bytearray()
        for pack in range(self.results // RESULTS_OF_A_PACK):
            self._digests += raw_digest_of(self._pack(pack))
        self._by_digest = {
            self._digest(pack)[:8]: pack for pack in range(self.results // RESULTS_OF_A_PACK)
        }
        self._segment_names = list(map(self._segment_name, range(self.results // RESULTS_OF_A_SEGMENT)))
        self.mib = _peak_mib()

    def names(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        """Yield all that is there and begins with `prefix`: the name, its kind, its number."""
        if "manifests/".startswith(prefix):
            for number in range(self.results):
                if not self._deleted["manifests"][number]:
                    yield names.manifest_name("ns", f"{number:08}", 0), "manifests", number
        if "packs/".startswith(prefix):
            for number in range(self.results // RESULTS_OF_A_PACK):
                if not self._deleted["packs"][number]:
                    yield names.pack_name(self._digest(number)), "packs", number
        for number, name in enumerate(self._segment_names):
            if name.startswith(prefix) and not self._deleted["profiles"][number]:
                yield name, "profiles", number

    async def get(self, name: str, part: range | None = None) -> bytes:
        self.requests["GET"] += 1
        await anyio.lowlevel.checkpoint()
        if name in self._created:
            return self._created[name][0]
        kind, number = self._number(name)
        if self._deleted[kind][number] or (kind == "manifests" and not name.endswith("/0")):
            raise ObjectAbsent(name)
        if kind == "manifests":
            return manifest.encode(self._manifest(number), NO_KEYS)
        return self._pack(number) if kind == "packs" else self._segment(number)

    async def create(self, name: str, data: bytes) -> bool:
        self.requests["PUT"] += 1
        self._created[name] = data, self.now
        return True

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        yielded = 0
        for name, kind, number in self.names(prefix):
            yielded += 1
            in_use = kind == "profiles" and self._is_in_use(number)
            yield Listed(name, 100, self.now - DAY if in_use else OLD)
        for name, (data, created) in list(self._created.items()):
            if name.startswith(prefix):
                yielded += 1
                yield Listed(name, len(data), created)
        self.requests["LIST"] += yielded // 1000 + 1

    async def delete(self, name: str) -> None:
        self.requests["DELETE"] += 1
        await anyio.lowlevel.checkpoint()
        if name in self._created:
            del self._created[name]
        else:
            kind, number = self._number(name)
            self._deleted[kind][number] = True

    def _number(self, name: str) -> tuple[str, int]:
        kind, rest = name.split("/", 1)
        if kind == "manifests":
            return kind, int(rest.split("/")[1])
        if kind == "packs":
            return kind, self._by_digest[bytes.fromhex(rest)[:8]]
        return kind, int(rest.split("/")[2].split("-")[0])

    def _digest(self, pack: int) -> bytes:
        return bytes(self._digests[pack * DIGEST_BYTES : (pack + 1) * DIGEST_BYTES])

    def _content(self, number: int) -> bytes:
        return array("Q", [number] * (CONTENT_BYTES // 8)).tobytes()

    @lru_cache(maxsize=256)  # noqa: B019
    def _pack(self, pack: int) -> bytes:
        first = pack * RESULTS_OF_A_PACK
        return frame.compress(b"".join(map(self._content, range(first, first + RESULTS_OF_A_PACK))))

    def _manifest(self, number: int) -> Manifest:
        pack = min(number // RESULTS_OF_A_PACK, self.results // RESULTS_OF_A_PACK - 1)
        start = number - pack * RESULTS_OF_A_PACK
        content = self._content(number)
        if start >= RESULTS_OF_A_PACK:
            inline = Member("binary", raw_digest_of(content), CONTENT_BYTES, inline=frame.compress(content))
            return Manifest("ns", f"{number:08}", [inline])
        place = Place(self._digest(pack), 0, len(self._pack(pack)), CONTENT_BYTES * RESULTS_OF_A_PACK)
        member = Member("binary", raw_digest_of(content), CONTENT_BYTES, start=start * CONTENT_BYTES)
        return Manifest("ns", f"{number:08}", [member], [place])

    def _segment(self, number: int) -> bytes:
        first = number * RESULTS_OF_A_SEGMENT
        found = [Reference(0, self._manifest(each)) for each in range(first, first + RESULTS_OF_A_SEGMENT)]
        made = catalog.build(found, NO_KEYS)
        return profile.encode(Segment(frames=[], catalog=made, profile=_prefix_of(number)), NO_KEYS)

    def _segment_name(self, number: int) -> str:
        return profile.segment_name(_prefix_of(number), number, self._segment(number))

    def _is_in_use(self, number: int) -> bool:
        return number // SEGMENTS_OF_A_PROFILE % 2 == 0


def _prefix_of(segment: int) -> str:
    return names.profile_prefix(f"job-{segment // SEGMENTS_OF_A_PROFILE}", "linux-x86_64")


def measured(
    what: str, store: MadeUp, run: Callable[[], Awaitable[object]], requests: float
) -> list[Number]:
    """Run something, and return the memory that all took until now beside the store's, and its requests."""
    store.requests.clear()
    started = time.monotonic()
    anyio.run(run)
    seconds = time.monotonic() - started
    print(f"{what}: {dict(store.requests)} in {seconds:.0f} s", flush=True)
    note = ", ".join(f"{number} {kind}" for kind, number in sorted(store.requests.items()))
    return [
        Number(f"{what}: memory so far", MEMORY_MIB, _peak_mib() - store.mib, " MiB"),
        Number(f"{what}: requests", requests, store.requests.total(), note=note),
    ]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@click.command()
@click.option("--objects", default=1_000_000, show_default=True)
def main(objects: int) -> None:
    """Measure, and say."""
    store = MadeUp(objects)
    results, segments = store.results, store.results // RESULTS_OF_A_SEGMENT
    packs, profiles = results // RESULTS_OF_A_PACK, segments // SEGMENTS_OF_A_PROFILE + 1
    terms = Terms(30 * DAY, DAY)
    lists = objects / 1000 + profiles + 20

    def clean() -> Awaitable[object]:
        return collect(store, terms, delete=True)

    numbers = measured("gc --delete, which condemns", store, clean, lists + results + segments + 100)
    store.now += DAY + 1
    going = (results + packs + segments) / 2 + SEGMENTS_OF_A_PROFILE * RESULTS_OF_A_SEGMENT
    numbers += measured(
        "gc --delete, which deletes", store, clean, lists + results + segments + going + 1000
    )
    left = Counter(kind for _, kind, _ in store.names())
    found: Counter[str] = Counter()
    numbers += measured(
        "verify, of what is left",
        store,
        lambda: verify(
            store, NO_KEYS, lambda finding: found.update([finding.verdict.value]), clock=lambda: store.now
        ),
        lists + left.total() + 20,
    )
    numbers.append(Number("manifests left ÷ those in use", 1.02, left["manifests"] / (results / 2)))
    numbers.append(Number("wrong or missing", 0, found["wrong"] + found["missing"]))
    Console(width=140).print(table(numbers), setting(["anyio", "msgspec"]))
    sys.exit(not all(number.is_met for number in numbers))


if __name__ == "__main__":
    main()
