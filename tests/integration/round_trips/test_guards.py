"""Guards: what one machine compiled for some sizes is loaded for all the sizes that it holds for."""

import pytest
from torch.utils._sympy.functions import OpaqueUnaryFn_sqrt
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.symbol import SymT, make_symbol

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device

SIZES = """
    import math

    from torch.nn.functional import adaptive_avg_pool2d

    def run(name, fn, arguments, dynamic=None):
        with step(name) as computed:
            compiled = torch.compile(fn, dynamic=dynamic)
            for argument in arguments:
                found = compiled(*argument)
                torch.testing.assert_close(found, fn(*argument))
                computed(found)

    # Arguments are made one after the other while a step runs, which begins with the same seed.
    def images(dtype, *sizes):
        return ((torch.rand(1, 2, *size, dtype=dtype, device=DEVICE),) for size in sizes)

    def squares(*sizes):
        return ((torch.rand(size, size, device=DEVICE),) for size in sizes)

    # Windows so large that there is no kernel to compile.
    def pool(x):
        return adaptive_avg_pool2d(x, (5, 7))

    for dtype in "float32", "bfloat16":
        for size in (40, 50), (41, 52), (43, 55):
            run(f"pool-{dtype}-{size[0]}", pool, images(getattr(torch, dtype), size), dynamic=True)

    class Isin(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("elements", torch.tensor([0, 2, 4], device=DEVICE))

        def forward(self, x):
            return torch.isin(x, self.elements)

    sizes = range(1, 5 if ROLE == "a" else 7)
    run("isin", Isin(), ((torch.arange(size, device=DEVICE),) for size in sizes))

    def rooted(x):
        if math.sqrt(x.size(0)) > 2:
            pass
        return x @ x

    run("root-above", rooted, squares(5), dynamic=True)
    run("root-below", rooted, squares(3), dynamic=True)
    run("root-more-sizes", rooted, squares(6, 7, 9), dynamic=True)

    def branched(x, number):
        return x @ x.t() if number > 5 else x.t() @ x

    def numbered(number):
        return ((*square, number) for square in squares(3))

    run("number-above", branched, numbered(6 if ROLE == "a" else 7), dynamic=True)
    if ROLE == "b":
        run("number-below", branched, numbered(4), dynamic=True)
    report(steps=steps)
"""

LARGE = """
    def double(x, y):
        return x + x, y + y

    small, large = (5, 6), (47000, 47001)
    for dtype in "float16", "bfloat16":
        for number, sizes in enumerate([(small, (7, 8)), (small, large), (large, small)]):
            with step(f"{dtype}-{number}") as computed:
                x, y = (torch.ones(size, dtype=getattr(torch, dtype), device=DEVICE) for size in sizes)
                for found in torch.compile(double, dynamic=True)(x, y):
                    assert bool((found == 2).all())
                    computed(found[-1, -1])
    report(steps=steps)
"""
"""A tensor of more than 2**31 elements needs other index arithmetic than a small one."""

KEEPS_ROOTS = "sym_sqrt" in PythonPrinter().doprint(OpaqueUnaryFn_sqrt(make_symbol(SymT.SIZE, 0)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_variant_for_a_static_size_is_loaded(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, dtype: str
) -> None:
    trip = round_trip(SIZES, caches, device)
    for number, size in enumerate((40, 41, 43)):
        a, b = trip.on_a(f"pool-{dtype}-{size}"), trip.on_b(f"pool-{dtype}-{size}")
        assert (a.hits, a.misses) == (0, 1)
        assert a.aot_autograd["autograd_cache_guard_miss"] == min(number, 1)
        assert (b.hits, b.misses, b.aot_autograd["autograd_cache_hit"]) == (1, 0, 1)
        assert b.computed == a.computed


def test_a_growing_size_is_compiled_twice_and_loaded_twice(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    trip = round_trip(SIZES, caches, device)
    a, b = trip.on_a("isin"), trip.on_b("isin")
    assert (a.hits, a.misses, a.frames["ok"]) == (0, 2, 2)
    assert (b.hits, b.misses, b.frames["ok"]) == (2, 0, 2)
    assert (len(a.computed), len(b.computed)) == (4, 6)
    assert b.computed[:4] == a.computed


def test_variants_for_the_root_of_a_size_are_loaded(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    trip = round_trip(SIZES, caches, device)
    for step in "root-above", "root-below":
        a, b = trip.on_a(step), trip.on_b(step)
        assert (a.hits, a.misses) == (0, 1)
        assert a.aot_autograd["autograd_cache_guard_miss"] == (step == "root-below")
        assert (b.hits, b.misses, b.aot_autograd["autograd_cache_hit"]) == (1, 0, 1)
        assert b.computed == a.computed


@pytest.mark.skipif(not KEEPS_ROOTS, reason="this torch makes a size under a root static when it loads")
def test_what_is_loaded_with_a_root_in_its_guards_stays_dynamic(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    b = round_trip(SIZES, caches, device).on_b("root-more-sizes")
    assert (b.hits, b.misses, b.frames["ok"]) == (1, 0, 1)


def test_a_number_that_is_not_in_the_graph_is_guarded(
    round_trip: MakeRoundTrip, caches: Caches, device: Device
) -> None:
    trip = round_trip(SIZES, caches, device)
    above, below = trip.on_b("number-above"), trip.on_b("number-below")
    assert (above.hits, above.misses) == (1, 0)
    assert above.computed == trip.on_a("number-above").computed
    assert (below.hits, below.misses) == (0, 1)
    assert below.computed != above.computed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_variant_for_an_index_width_is_loaded(
    round_trip: MakeRoundTrip, caches: Caches, dtype: str
) -> None:
    trip = round_trip(LARGE, caches, Device.CUDA)
    for number in range(3):
        a, b = trip.on_a(f"{dtype}-{number}"), trip.on_b(f"{dtype}-{number}")
        assert (a.hits, a.misses) == (0, 1)
        assert (b.hits, b.misses) == (1, 0)
        assert b.computed == a.computed
