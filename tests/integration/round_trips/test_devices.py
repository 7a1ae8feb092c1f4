"""Which GPU is the current one matters to what is made on it, and to nothing else."""

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device, step_of
from tests.integration.starts import Fleet

GUARDED = """
    def made():
        return torch.ones(3, device="cuda").cumsum(0)

    def given(x):
        return x.cos() + 1

    torch.cuda.set_device(int(os.environ.get("GPU", 0)))
    with step("made") as computed:
        found = torch.compile(made)()
        torch.testing.assert_close(found, made())
        computed(found)
    with step("given") as computed:
        x = torch.arange(40.0)
        computed(torch.compile(given)(x))
    report(steps=steps, made_on=found.device.index)
"""
"""A function without arguments makes a tensor on the current GPU; another is given one on the CPU."""


@pytest.mark.two_gpus
def test_what_is_made_on_another_gpu_is_compiled_for_it(
    fleet: Fleet, round_trip: MakeRoundTrip, caches: Caches
) -> None:
    trip = round_trip(GUARDED, caches, Device.CUDA)
    assert (trip.on_b("made").hits, trip.on_b("given").hits) == (1, 1)
    on_another = trip.start(fleet.fresh(), GPU="1")
    made, given = step_of(on_another, "made"), step_of(on_another, "given")
    assert (made.hits, made.misses, on_another.facts["made_on"]) == (0, 1, 1)
    assert (given.hits, given.misses) == (1, 0)
    assert made.computed == trip.on_a("made").computed
    assert given.computed == trip.on_a("given").computed
