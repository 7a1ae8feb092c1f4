"""What was measured to choose kernels and their configurations is measured once in a fleet."""

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Device, step_of
from tests.integration.starts import Fleet

pytestmark = pytest.mark.gpu

KERNELS = """
    from torch._inductor import config, remote_cache

    def statistics():
        found = remote_cache.cache_stats._stats
        return {name: [stat.put, stat.hit, stat.miss] for name, stat in found.items()}

    caches = {
        "local": (True, False, False),
        "remote": (False, True, False),
        "bundled": (True, False, True),
    }
    for number, (name, (local, remote, bundled)) in enumerate(caches.items(), 2):
        fn = eval(f"lambda x, y, a, b: (x + y * {number}, a + b * {number})")

        patch = config.patch(
            # A graph that is found would bring its kernels along.
            fx_graph_cache=False,
            max_autotune=True,
            autotune_local_cache=local,
            autotune_remote_cache=remote,
            bundled_autotune_remote_cache=bundled,
        )
        remote_cache.cache_stats._stats.clear()
        with step(name, patch) as computed:
            x, y = torch.randn(2, 100, 100, device=DEVICE)
            a, b = torch.randn(2, 1000, 100, device=DEVICE)
            found = torch.compile(fn, fullgraph=True)(x, y, a, b)
            torch.testing.assert_close(found, fn(x, y, a, b))
            for value in found:
                computed(value)
        steps[name]["statistics"] = statistics()
    report(steps=steps)
"""
"""Two kernels a step."""

DESCENT = """
    from torch._inductor import config

    # Of one configuration, or of several, descent starts at the best; a graph may be found or compiled.
    ways = {"one-found": (False, True), "compiled": (False, False), "several-found": (True, True)}
    for number, (name, (several, found)) in enumerate(ways.items(), 2):
        fn = eval(f"lambda x: (x.sin() * {number}, x.cos() + {number})")
        patch = config.patch(fx_graph_cache=found, coordinate_descent_tuning=True, max_autotune=several)
        with step(name, patch) as computed:
            x = torch.randn(2000, 700, device=DEVICE)
            found = torch.compile(fn)(x)
            torch.testing.assert_close(found, fn(x), atol=1e-3, rtol=1e-3)
            for value in found:
                computed(value)
    report(steps=steps)
"""

GEMMS = """
    from torch._inductor import config

    width = int(os.environ.get("WIDTH", 384))
    with step("model", config.patch(max_autotune=True)), torch.no_grad():
        model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, width)).to(DEVICE)
        x = torch.randn(128, 256, device=DEVICE)
        torch.testing.assert_close(torch.compile(model)(x), model(x), atol=1e-2, rtol=1e-2)
    report(steps=steps)
"""


@pytest.mark.parametrize(
    ("cache", "statistics"),
    [("local", None), ("remote", "RemoteAutotuneCache"), ("bundled", "RemoteBundledAutotuneCache")],
)
def test_no_kernel_is_tuned_twice(round_trip: MakeRoundTrip, cache: str, statistics: str | None) -> None:
    trip = round_trip(KERNELS, device=Device.CUDA)
    assert trip.on_a(cache).benchmarked > 0
    assert trip.on_b(cache).benchmarked == 0
    assert trip.on_b(cache).computed == trip.on_a(cache).computed
    if statistics:
        number = 1 if cache == "bundled" else 2
        assert trip.recorded.facts["steps"][cache]["statistics"][statistics] == [number, 0, number]
        assert trip.restored.facts["steps"][cache]["statistics"][statistics] == [0, number, 0]


@pytest.mark.parametrize("way", ["one-found", "several-found", "compiled"])
def test_what_coordinate_descent_found_is_where_the_next_machine_starts(
    round_trip: MakeRoundTrip, way: str
) -> None:
    trip = round_trip(DESCENT, device=Device.CUDA)
    a, b = trip.on_a(way), trip.on_b(way)
    assert b.hits == way.endswith("found")
    assert a.inductor["coordesc_tuning_bench"] > 0
    assert b.inductor["coordesc_tuning_bench"] == 0
    assert b.computed == a.computed


def test_an_edited_layer_is_the_only_one_to_be_measured(fleet: Fleet, round_trip: MakeRoundTrip) -> None:
    trip = round_trip(GEMMS, device=Device.CUDA)
    assert trip.on_a("model").inductor["select_algorithm_autotune"] == 2
    edited = step_of(trip.start(fleet.fresh(), WIDTH="640"), "model")
    assert (edited.hits, edited.misses) == (0, 1)
    assert edited.inductor["select_algorithm_autotune"] == 1
