"""AOTAutograd's results: with backwards, with those that never ran, and without their graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device, RoundTrip, Step, step_of
from tests.integration.starts import Fleet, Start
from tests.servers import Server

RESULTS = """
    from torch._functorch import config

    bundled = config.patch(bundled_autograd_cache=True)

    def run(name, fn, *patches, backward=True, dynamic=False):
        with step(name, *patches) as computed:
            eager = torch.rand(4, 4, device=DEVICE, requires_grad=True)
            x = eager.detach().clone().requires_grad_()
            found, expected = torch.compile(fn, dynamic=dynamic)(x), fn(eager)
            torch.testing.assert_close(found, expected)
            computed(found)
            if backward:
                found.sum().backward()
                expected.sum().backward()
                torch.testing.assert_close(x.grad, eager.grad)
                computed(x.grad)

    def graphs():
        folder = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "fxgraph")
        return {path.name for path in folder.glob("*/*")}

    if ROLE in "ab":
        run("static", lambda x: x @ x)
        run("dynamic", lambda x: x @ x, dynamic=True)
        run("bundled-static", lambda x: (x @ x).relu(), bundled)
        run("bundled-dynamic", lambda x: x @ x @ x, bundled, dynamic=True)
        run("forward", lambda x: x @ x @ x, backward=False)
    if ROLE in "bc":
        run("forward-then-backward", lambda x: x @ x @ x)
    before = graphs()
    run("without-graphs", lambda x: x @ x.t())
    report(steps=steps, graphs=sorted(graphs() - before))
"""


@dataclass(frozen=True)
class Trips:
    """A round trip, and two starts on fresh machines after the graphs of one result were deleted."""

    trip: RoundTrip
    graphs: dict[str, str]
    c: Start
    d: Start


Make = Callable[[Caches, Device], Trips]


@pytest.fixture(scope="module")
def make_trips(round_trip: MakeRoundTrip, fleet: Fleet, seaweedfs_server: Server) -> Make:
    @cache
    def make(caches: Caches, device: Device) -> Trips:
        trip = round_trip(RESULTS, caches, device)
        names = [f"manifests/fx-graph/{key}/" for key in trip.recorded.facts["graphs"]]
        graphs = {name: mark for prefix in names for name, mark in fleet.objects(prefix).items()}
        bucket, _, root = fleet.url.removeprefix("s3://").partition("/")
        client = seaweedfs_server.client()
        for name in graphs:
            client.delete_object(Bucket=bucket, Key=f"{root}/v1/{name}")
        client.close()
        # Other jobs: a profile may hold what is not in the bucket any more.
        c, d = (
            trip.start(fleet.fresh(), ROLE="c", S3CACHE_JOB=f"{job}-{caches.name}-{device.name}")
            for job in "cd"
        )
        return Trips(trip, graphs, c, d)

    return make


@pytest.fixture
def trips(make_trips: Make, caches: Caches, device: Device) -> Trips:
    return make_trips(caches, device)


@pytest.mark.parametrize("shape", ["static", "dynamic"])
def test_forward_and_backward_are_loaded(trips: Trips, shape: str) -> None:
    a, b = trips.trip.on_a(shape), trips.trip.on_b(shape)
    assert (results(a), a.misses) == ((0, 1, 1), 2)
    assert (results(b), b.hits, b.misses) == ((1, 0, 0), 2, 0)
    assert b.computed == a.computed


@pytest.mark.parametrize("shape", ["static", "dynamic"])
def test_a_result_that_holds_its_graphs_is_loaded(trips: Trips, device: Device, shape: str) -> None:
    a, b = trips.trip.on_a(f"bundled-{shape}"), trips.trip.on_b(f"bundled-{shape}")
    assert (results(a), a.hits, a.misses) == ((0, 1, 1), 0, 0)
    assert (results(b), b.hits, b.misses) == ((1, 0, 0), 0, 0)
    assert b.computed == a.computed
    if device is Device.CPU:
        assert trips.trip.restored.compiled == []


def test_a_result_is_stored_when_its_backward_was_compiled(trips: Trips) -> None:
    a, b = trips.trip.on_a("forward"), trips.trip.on_b("forward")
    assert (results(a), a.hits, a.misses) == ((0, 1, 0), 0, 1)
    assert (results(b), b.hits, b.misses) == ((0, 1, 0), 1, 0)
    assert b.computed == a.computed

    b, c = trips.trip.on_b("forward-then-backward"), step_of(trips.c, "forward-then-backward")
    assert (results(b), b.hits, b.misses) == ((0, 1, 1), 1, 1)
    assert (results(c), c.hits, c.misses) == ((1, 0, 0), 2, 0)
    assert c.computed == b.computed


def test_a_result_without_its_graphs_is_compiled_and_stored_again(trips: Trips, fleet: Fleet) -> None:
    a = trips.trip.on_a("without-graphs")
    c, d = (step_of(start, "without-graphs") for start in (trips.c, trips.d))
    assert len(trips.graphs) == 2
    assert results(a) == (0, 1, 1)
    assert (results(c), c.hits) == ((0, 1, 1), 0)
    assert trips.graphs.keys() <= fleet.objects("manifests/fx-graph/").keys()
    assert (results(d), d.hits, d.misses) == ((1, 0, 0), 2, 0)
    assert a.computed == c.computed == d.computed
    assert trips.c.warnings == trips.d.warnings == []


def results(step: Step) -> tuple[int, int, int]:
    """Return how many of AOTAutograd's results were found, not found, and saved."""
    found, missing, saved = (f"autograd_cache_{what}" for what in ("hit", "miss", "saved"))
    return step.aot_autograd[found], step.aot_autograd[missing], step.aot_autograd[saved]
