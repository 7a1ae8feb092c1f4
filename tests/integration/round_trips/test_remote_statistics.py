"""What PyTorch counts of its remote caches, where the user turned them on: as if each were a server."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from s3cache.names import manifest_name
from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device
from tests.integration.starts import Fleet, Start

STATISTICS = """
    from itertools import product

    import torch.compiler.config
    from torch._inductor import config, remote_cache

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    shapes = {"static": False, "dynamic": True}
    bundles = {"bundled": True, "unbundled": False}
    TAG = torch.compiler.config.cache_key_tag

    asked = []
    get = remote_cache.RemoteCacheBackend.get
    remote_cache.RemoteCacheBackend.get = lambda backend, key: asked.append(key) or get(backend, key)

    def counts():
        return {name: (s.put, s.hit, s.miss) for name, s in remote_cache.cache_stats._stats.items()}

    def double(x):
        return x * 2

    tags = {"": TAG, "-another-tag": f"{TAG}-another"} if ROLE == "d" else {"": TAG}
    for (suffix, tag), dtype, shape, bundle in product(tags.items(), dtypes, shapes, bundles):
        cell = f"{dtype}-{shape}-{bundle}"
        name = cell + suffix
        settings = {"cache_key_tag": tag, "job_id": f"{TAG}-{cell}"}
        before = counts()
        asked.clear()
        with step(
            name,
            config.patch(bundle_triton_into_fx_graph_cache=bundles[bundle]),
            torch.compiler.config.patch(settings),
        ) as computed:
            x = torch.rand(2, 3, dtype=dtypes[dtype], device=DEVICE)
            found = torch.compile(double, dynamic=shapes[shape])(x)
            torch.testing.assert_close(found, double(x))
            computed(found)
        steps[name]["asked"] = list(asked)
        steps[name]["statistics"] = {
            cache: [after - b for after, b in zip(counted, before.get(cache, (0, 0, 0)))]
            for cache, counted in counts().items()
        }
    report(steps=steps)
"""
PUT_AND_MISSED = [1, 0, 1]
HIT = [0, 1, 0]
NAMESPACES = {
    "RemoteFxGraphCache": "fx-graph",
    "RemoteAOTAutogradCache": "aot-autograd",
    "RemoteDynamoPGOCache": "dynamo-pgo",
}
KEYS = {
    "RemoteFxGraphCache": r"pt2:fx-graph-v1::([0-9a-z]{52}):c[0-9]+",
    "RemoteAOTAutogradCache": r"pt2:autograd-experimental::([0-9a-z]{52}):c[0-9]+",
    "RemoteDynamoPGOCache": r"pt2:dynamo-pgo::(.+:None:.*):c[0-9]+",
}

FourStarts = Callable[[Device], list[Start]]


@pytest.fixture(scope="module")
def four_starts(round_trip: MakeRoundTrip, fleet: Fleet) -> FourStarts:
    """Start on four fresh machines, one after the other; the last one goes on with another tag."""

    @cache
    def start(device: Device) -> list[Start]:
        trip = round_trip(STATISTICS, Caches.REMOTE, device)
        more = [trip.start(fleet.fresh(), ROLE=role) for role in ("c", "d")]
        return [trip.recorded, trip.restored, *more]

    return start


@pytest.mark.parametrize("remote_cache", KEYS)
@pytest.mark.parametrize("bundle", ["bundled", "unbundled"])
@pytest.mark.parametrize("shape", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_machine_puts_and_every_other_hits(
    four_starts: FourStarts, device: Device, dtype: str, shape: str, bundle: str, remote_cache: str
) -> None:
    starts = four_starts(device)
    name = f"{dtype}-{shape}-{bundle}"
    steps = [start.facts["steps"][name] for start in starts]
    statistics = [step["statistics"][remote_cache] for step in steps]
    assert statistics == [PUT_AND_MISSED, HIT, HIT, HIT]
    assert len({tuple(step["computed"]) for step in steps}) == 1

    another = starts[-1].facts["steps"][f"{name}-another-tag"]
    assert another["statistics"][remote_cache] == PUT_AND_MISSED

    ((key,), *others, (another_key,)) = [_asked(step, remote_cache) for step in [*steps, another]]
    assert others == [[key]] * 3
    assert another_key != key


def test_nothing_is_stored_twice(four_starts: FourStarts, fleet: Fleet, device: Device) -> None:
    recorded, *restored, last = four_starts(device)
    cells = len(recorded.facts["steps"])
    for namespace in NAMESPACES.values():
        assert recorded.count("puts", namespace) == last.count("puts", namespace) == cells
    assert [start.count("puts") for start in restored] == [0, 0]
    stored = fleet.objects("manifests/").keys()
    for remote_cache, namespace in NAMESPACES.items():
        for step in last.facts["steps"].values():
            (key,) = _asked(step, remote_cache)
            slots = [manifest_name(namespace, key, slot) for slot in range(2)]
            assert [slot in stored for slot in slots] == [True, False]


def test_nothing_is_warned_of(four_starts: FourStarts, device: Device) -> None:
    assert [start.warnings for start in four_starts(device)] == [[]] * 4


def _asked(step: dict[str, Any], remote_cache: str) -> list[str]:
    """Return the keys that a remote cache was asked for in a step."""
    found = [re.fullmatch(KEYS[remote_cache], key) for key in step["asked"]]
    return [match[1] for match in found if match]
