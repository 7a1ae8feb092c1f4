"""Whatever a store does wrong: what is served is what was put, and no manifest leads nowhere."""

import random
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from s3cache import frame, manifest, names
from s3cache.cache import Cache
from s3cache.errors import S3CacheError
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine
from s3cache.manifest import Result
from s3cache.tier import DiskTier
from tests.faults import KINDS, Fault, UnreliableStore
from tests.memory import MemoryStore

pytestmark = pytest.mark.anyio

KEYS = 30


def content(number: int) -> bytes:
    return random.Random(number).randbytes(300 + number % 3 * 10_000)


def check_whole(objects: dict[str, bytes]) -> None:
    """Check that every manifest resolves to what it says."""
    for name, data in objects.items():
        if name.startswith("manifests/"):
            found = manifest.decode(data, NO_KEYS)
            for member in found.members:
                grown = None
                if member.inline is None:
                    place = found.frames[member.frame]
                    pack = objects[names.pack_name(place.pack)]
                    grown = frame.decompress(pack[place.offset : place.offset + place.length], place.size)
                manifest.content_of(member, grown)


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_served_is_right_and_what_is_stored_is_whole(
    tmp_path: Path, kind: str, rate: float
) -> None:
    memory = MemoryStore()
    served = 0
    for turn in range(2):
        store = UnreliableStore(memory, Fault(kind, rate, seed=turn))
        cache = Cache(store, DiskTier(tmp_path / str(turn), 1 << 30), Machine(), NO_KEYS)
        for start in range(0, KEYS, 10):
            results = [Result("ns", f"key-{n}", {"binary": content(n)}) for n in range(start, start + 10)]
            with suppress(S3CacheError):
                await cache.put_all(results, heed_claims=turn == 0)
            check_whole(memory.objects)
        reader = Cache(store, DiskTier(tmp_path / f"reader-{turn}", 1 << 30), Machine(), NO_KEYS)
        for number in range(KEYS):
            with anyio.fail_after(5):
                try:
                    entry = await reader.get("ns", f"key-{number}")
                except S3CacheError:
                    continue
            if entry is not None:
                served += 1
                assert entry.members == {"binary": content(number)}
    if rate == 0.01:
        assert served > KEYS
