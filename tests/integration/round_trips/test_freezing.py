"""Frozen parameters: their values are part of a graph's key only if they may be part of its code."""

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device

FROZEN = """
    from torch._inductor import config

    class Frozen(nn.Module):
        def __init__(self, function, *shape, dtype=torch.float32):
            super().__init__()
            self.function = function
            self.weight = nn.Parameter(torch.rand(shape, dtype=dtype, device=DEVICE))

        def forward(self, x):
            return self.function(x, self.weight)

    def run(name, *of_weight, **options):
        # Machine B, which has a library to compile, has no precompiled header.
        patch = config.patch(freezing=True, cpp_cache_precompile_headers=False)
        with step(name, patch) as computed, torch.no_grad():
            torch.manual_seed(seed)
            module = Frozen(*of_weight, **options)
            x = torch.rand_like(module.weight)
            found = torch.compile(module)(x)
            torch.testing.assert_close(found, module(x))
            computed(found)

    def product(x, weight):
        return (x @ weight).sin()

    seeds = {"other-": 1, "": 0} if ROLE == "b" else {"": 0}
    for prefix, seed in seeds.items():
        run(f"{prefix}small", lambda x, weight: x * weight, 4)
        run(f"{prefix}large", torch.bmm, 1, 8, 8)
        run(f"{prefix}large-float16", torch.bmm, 1, 8, 8, dtype=torch.float16)
        run(f"{prefix}packed", product, 8, 8)
    report(steps=steps)
"""
"""Machine B has other parameters first, then those of machine A.

For a CPU, oneDNN packs a parameter that is multiplied by a matrix, but not one of a batch of products.
"""


@pytest.mark.parametrize("size", ["small", "large", "large-float16"])
def test_the_same_parameters_hit(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, size: str
) -> None:
    trip = round_trip(FROZEN, caches, device)
    a, b = trip.on_a(size), trip.on_b(size)
    assert (a.misses, a.hits, b.misses, b.hits) == (1, 0, 0, 1)
    assert b.computed == a.computed


def test_other_parameters_that_are_small_miss(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    trip = round_trip(FROZEN, caches, device)
    other = trip.on_b("other-small")
    assert (other.misses, other.hits) == (1, 0)
    assert other.computed != trip.on_a("small").computed


@pytest.mark.parametrize("size", ["large", "large-float16"])
def test_other_parameters_that_are_large_hit_and_are_those_that_count(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, size: str
) -> None:
    trip = round_trip(FROZEN, caches, device)
    other = trip.on_b(f"other-{size}")
    assert (other.misses, other.hits) == (0, 1)
    assert other.computed != trip.on_a(size).computed


def test_parameters_that_are_packed_for_a_cpu_are_not_cached(
    round_trip: MakeRoundTrip, caches: Caches
) -> None:
    trip = round_trip(FROZEN, caches, Device.CPU)
    a, b, other = trip.on_a("packed"), trip.on_b("packed"), trip.on_b("other-packed")
    for step in a, b, other:
        assert step.inductor["fxgraph_cache_bypass"] == 1
        assert (step.misses, step.hits) == (0, 0)
    assert b.computed == a.computed != other.computed


def test_only_the_library_of_other_small_parameters_is_compiled(round_trip: MakeRoundTrip) -> None:
    trip = round_trip(FROZEN, Caches.LOCAL, Device.CPU)
    assert len(trip.recorded.compiled) >= 2
    assert len(trip.restored.compiled) == 1
