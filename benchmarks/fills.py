"""Filling a fresh disk tier: how near that is to fetching the same bytes and throwing them away."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import anyio

from benchmarks.bars import Number, turned
from benchmarks.datasets import Item
from benchmarks.lab import BUCKET, JOB, NAMESPACE, ROOM, Lab
from benchmarks.network import round_trips
from benchmarks.rivals import rivals
from s3cache import names
from s3cache import prelude as preludes
from s3cache.bucket import Bucket
from s3cache.cache import Cache
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.machine import Machine as Requirements
from s3cache.machine import platform_tag
from s3cache.manifest import Entry
from s3cache.prefetch import AT_ONCE, Progress, bring, open_profile, ranges, worth_fetching
from s3cache.prelude import PRELUDE_BYTES
from s3cache.profile import decode, live
from s3cache.tier import DiskTier

PREFIX = names.profile_prefix(JOB, platform_tag())
FOREIGN = 100_000
# The peak that the kernel counts by rusage begins with that of the process before it.
WARM = """
from s3cache.cli import main
main(["warm"], standalone_mode=False)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
TIER_ENTRIES = 100_000
ENTRY_BYTES = 1_000
PUTS = 2_000


def fill(lab: Lab, what: str, items: Sequence[Item]) -> list[Number]:
    """Fill, look up and lay down a data set, beside the tar and one object a file."""
    url = lab.url()
    lab.say(f"storing {what}")
    lab.record(items, url)
    stored = _stored_bytes(lab, url)
    with lab.wire() as wire, lab.credentials(wire):
        others = rivals(lab.server, wire.endpoint, BUCKET)
        for rival in others:
            lab.say(f"storing {what} as {rival.name}")
            rival.store(items)
        seconds: dict[str, list[float]] = {}
        requests: list[int] = []
        trips: list[int] = []
        kinds = ["fill", "thrown away", *(rival.name for rival in others)]
        for turn in range(lab.runs):
            for kind in turned(kinds, turn):
                began = time.monotonic()
                if kind == "fill":
                    made = anyio.run(_fill, lab, url, items)
                    took = made.filled
                    seconds.setdefault("ready", []).append(made.ready)
                    seconds.setdefault("laid down", []).append(made.laid_down)
                    passed = wire.requests(began)
                    requests.append(len(passed))
                    trips.append(round_trips(passed))
                elif kind == "thrown away":
                    took = anyio.run(_throw_away, url)
                else:
                    took = next(rival for rival in others if rival.name == kind).fetch(lab.folder())
                seconds.setdefault(kind, []).append(took)
    middle = {kind: statistics.median(values) for kind, values in seconds.items()}
    for kind, value in middle.items():
        lab.say(f"{what}, {kind}: {value:.3f} s")
    tar = next(rival for rival in others if rival.name == "tar.zst")
    beside = {f"{rival.name}, s": middle[rival.name] for rival in others}
    note = f"{middle['fill']:.3f} s ÷ {middle['thrown away']:.3f} s"
    return [
        Number(
            f"{what}: filling ÷ thrown away",
            1.3,
            middle["fill"] / middle["thrown away"],
            note=note,
            beside=beside,
        ),
        Number(
            f"{what}: filled and ready to launch ÷ tar.zst",
            0.6,
            middle["ready"] / middle["tar.zst"],
            note=f"{middle['ready']:.3f} s ÷ {middle['tar.zst']:.3f} s",
            beside={"with every launch member laid down as a file, s": middle["laid down"]},
        ),
        Number(
            f"{what}: all bytes in the bucket ÷ tar.zst",
            1.1,
            stored / tar.stored_bytes,
            note=f"{stored / 1e6:.2f} MB ÷ {tar.stored_bytes / 1e6:.2f} MB",
            beside={f"{rival.name}, MB": rival.stored_bytes / 1e6 for rival in others},
        ),
        Number(f"{what}: round trips one after another", 3, max(trips)),
        Number(f"{what}: requests in all", 60, max(requests)),
    ]


def beside_others(lab: Lab, items: Sequence[Item]) -> list[Number]:
    """Fill from a place where 100,000 other keys have manifests, and from one where none have."""
    alone, crowded = lab.url(), lab.url()
    for url in (alone, crowded):
        lab.say("storing the data set")
        lab.record(items, url)
    lab.say(f"storing {FOREIGN} foreign manifests")
    with lab.credentials():
        anyio.run(_crowd, crowded)
    seconds: dict[str, list[float]] = {"alone": [], "crowded": []}
    requests: dict[str, set[int]] = {"alone": set(), "crowded": set()}
    with lab.wire() as wire, lab.credentials(wire):
        for turn in range(2 * lab.runs):
            for kind in turned(list(seconds), turn):
                began = time.monotonic()
                url = alone if kind == "alone" else crowded
                seconds[kind].append(anyio.run(_fill, lab, url, items).filled)
                requests[kind].add(len(wire.requests(began)))
    crowd, lone = statistics.median(seconds["crowded"]), statistics.median(seconds["alone"])
    return [
        Number(
            "filling beside 100,000 foreign manifests ÷ without",
            1.05,
            crowd / lone,
            note=f"{crowd:.3f} s ÷ {lone:.3f} s",
        ),
        Number(
            "its requests ÷ without",
            1.0,
            max(requests["crowded"]) / min(requests["alone"]),
            note=f"{sorted(requests['crowded'])} ÷ {sorted(requests['alone'])}",
        ),
    ]


def memory(lab: Lab, items: Sequence[Item]) -> list[Number]:
    """Compare the peak of a process that fetches all with one that finds nothing to fetch."""
    url = lab.url()
    lab.record(items, url)
    with lab.wire() as wire:
        peaks = {
            kind: statistics.median(
                _peak_of_warming(lab, lab.settings(place, wire)) for _ in range(lab.runs)
            )
            for kind, place in (("idle", lab.url()), ("warm", url))
        }
    note = f"{peaks['warm'] / 1e6:.0f} MB - {peaks['idle'] / 1e6:.0f} MB"
    return [
        Number(
            "peak memory of a warm start over idle", 200, (peaks["warm"] - peaks["idle"]) / 1e6, " MB", note
        )
    ]


def eviction(lab: Lab) -> list[Number]:
    """Put into a tier of 100,000 entries that is at its limit, and into one that is not."""
    room = TIER_ENTRIES * (ENTRY_BYTES + 32)
    seconds: dict[str, list[float]] = {}
    for kind, limit in (("without", 2 * room), ("with", room)):
        lab.say(f"filling a tier with {TIER_ENTRIES} entries, to put {kind} eviction")
        tier = DiskTier(lab.folder(), limit)
        for number in range(TIER_ENTRIES):
            tier.write(f"packs/{number % 256:02x}/{number}", b"%01000d" % number)
        seconds[kind] = []
        for number in range(PUTS):
            content = b"%01000d" % -number
            began = time.perf_counter()
            tier.write(f"packs/new/{number}", content)
            seconds[kind].append(time.perf_counter() - began)
    numbers = []
    for name, bar, of in (("median", 2, statistics.median), ("p99", 5, _p99)):
        evicting, plain = of(seconds["with"]), of(seconds["without"])
        note = f"{evicting * 1e6:.0f} µs ÷ {plain * 1e6:.0f} µs"
        numbers.append(Number(f"put with eviction ÷ without, {name}", bar, evicting / plain, note=note))
    return numbers


@dataclass(frozen=True)
class Fill:
    """Seconds until all is in the tier, until every launch member was read, and until each is a file."""

    filled: float
    ready: float
    laid_down: float


async def _fill(lab: Lab, url: str, items: Sequence[Item]) -> Fill:
    tier = DiskTier(lab.folder(), ROOM)
    async with Bucket(url) as bucket:
        began = time.perf_counter()
        cache = Cache(bucket, tier, Requirements(), NO_KEYS)
        segments, _, prelude = await open_profile(cache, bucket, PREFIX)
        frames = worth_fetching(live(segments).values(), Requirements(), (), ROOM)
        await bring(cache, frames, Progress(), prelude.frames if prelude else None)
        filled = time.perf_counter() - began
    began = time.perf_counter()
    read = [entry.members for entry in _look_up(tier, items)]
    looked_up = time.perf_counter() - began
    folder = lab.folder()
    for item, members in zip(items, read, strict=True):
        (folder / item.key).mkdir(parents=True)
        for name, content in members.items():
            (folder / item.key / name).write_bytes(content)
    return Fill(filled, filled + looked_up, filled + time.perf_counter() - began)


def _look_up(tier: DiskTier, items: Sequence[Item]) -> Iterator[Entry]:
    entries = LocalEntries(tier, names.catalog_prefixes(JOB, platform_tag()), NO_KEYS)
    for item in items:
        manifest = entries.manifest(NAMESPACE, item.key, 0)
        entry = entries.entry(manifest, 0) if manifest else None
        assert entry is not None
        yield entry


async def _throw_away(url: str) -> float:
    """Return the seconds to fetch what a fill fetches, in the same ranges and the same order."""
    async with Bucket(url) as bucket:
        found: list[str] = []
        limiter = anyio.CapacityLimiter(AT_ONCE)
        fetched: dict[str, bytes] = {}

        async def find() -> None:
            found.extend([listed.name async for listed in bucket.list(PREFIX)])

        async def get(name: str, part: range | None) -> None:
            async with limiter:
                fetched[name] = await bucket.get(name, part)

        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            group.start_soon(find)
            group.start_soon(get, names.prelude_name(PREFIX), range(PRELUDE_BYTES))
        paused = time.perf_counter()
        held = preludes.decode(fetched.popitem()[1], PREFIX)
        began += time.perf_counter() - paused
        async with anyio.create_task_group() as group:
            for name in found:
                if name not in held.segments:
                    group.start_soon(get, name, None)
        paused = time.perf_counter()
        read = [decode(name, data, NO_KEYS) for name, data in (held.segments | fetched).items()]
        frames = [packed for segment in read for packed in segment.frames]
        missing = [packed for packed in frames if packed.place.name not in held.frames]
        began += time.perf_counter() - paused
        async with anyio.create_task_group() as group:
            for run in ranges(missing):
                first, last = run[0].place, run[-1].place
                part = range(first.offset, last.offset + last.length)
                group.start_soon(get, names.pack_name(first.pack), part)
        return time.perf_counter() - began


async def _crowd(url: str) -> None:
    async with Bucket(url) as bucket:
        limiter = anyio.CapacityLimiter(64)

        async def store(number: int) -> None:
            async with limiter:
                await bucket.create(names.manifest_name("fx-graph", f"foreign-{number}", 0), b"foreign")

        async with anyio.create_task_group() as group:
            for number in range(FOREIGN):
                group.start_soon(store, number)


def _peak_of_warming(lab: Lab, settings: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", WARM],
        env=lab.machine().environment(settings),
        capture_output=True,
        text=True,
        check=True,
    )
    # In kB, after the name and before the unit.
    return float(done.stdout.split()[-2]) * 1024


def _stored_bytes(lab: Lab, url: str) -> int:
    prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
    client = lab.server.client()
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sum(item["Size"] for page in pages for item in page.get("Contents", ()))
    finally:
        client.close()


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
