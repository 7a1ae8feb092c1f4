"""All that one machine recorded, of every kind, is what the next one is served: no more and no fewer."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.integration.conftest import NewFleet
from tests.integration.round_trips.conftest import MakeRoundTrip
from tests.integration.round_trips.trips import Caches, Device, step_of
from tests.integration.starts import Fleet, Start

HOT_LOAD = """
    from itertools import product
    from unittest import mock

    import torch.compiler.config
    from torch._dynamo import config as dynamo_config
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._functorch import config as functorch_config
    from torch.compiler._cache import CacheArtifactManager

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    shapes = {"static": False, "dynamic": True}
    autograd_caches = {"autograd-cache": True, "no-autograd-cache": False}
    TAG = torch.compiler.config.cache_key_tag

    def double(x):
        return x * 2

    # Dynamo names a package by its function's name and line.
    packaged = {
        "float32-static": lambda x: x * 2,
        "float32-dynamic": lambda x: x * 2,
        "bfloat16-static": lambda x: x * 2,
        "bfloat16-dynamic": lambda x: x * 2,
    }

    @contextmanager
    def cell(name, *patches, tag=None, job_id=None):
        # Cells share compiled libraries; a tag of its own keeps each from finding another's graphs.
        settings = {"cache_key_tag": f"{TAG}-{tag or name}", "job_id": job_id}
        CacheArtifactManager.clear()
        with step(name, torch.compiler.config.patch(settings), *patches) as computed:
            yield computed
            saved = torch.compiler.save_cache_artifacts()
        artifacts = saved[1].artifacts if saved else {}
        steps[name]["artifacts"] = {kind: sorted(set(keys)) for kind, keys in artifacts.items()}

    if ROLE in "ab":
        for autograd_cache, dtype, shape in product(autograd_caches, dtypes, shapes):
            name = f"{autograd_cache}-{dtype}-{shape}"
            off = {"enable_autograd_cache": False, "enable_remote_autograd_cache": False}
            patch = functorch_config.patch({} if autograd_caches[autograd_cache] else off)
            with cell(name, patch, job_id="job") as computed:
                x = torch.rand(2, 3, dtype=dtypes[dtype], device=DEVICE)
                found = torch.compile(double, dynamic=shapes[shape])(x)
                torch.testing.assert_close(found, double(x))
                computed(found)

        for dtype, shape in product(dtypes, shapes):
            fn = packaged[f"{dtype}-{shape}"]
            patch = dynamo_config.patch(caching_precompile=True)
            # Each save saves all packages of the process once more: under one tag they are the same.
            with cell(f"package-{dtype}-{shape}", patch, tag="package") as computed:
                x = torch.rand(2, 3, dtype=dtypes[dtype], device=DEVICE, requires_grad=True)
                compiled = torch.compile(fn, dynamic=shapes[shape])
                with torch.compiler.set_stance("default" if ROLE == "a" else "fail_on_recompile"):
                    found = compiled(x)
                    found.sum().backward()
                torch.testing.assert_close(found, fn(x))
                torch.testing.assert_close(x.grad, torch.full_like(x, 2))
                computed(found)
                computed(x.grad)

    for name, roles in ("first", "abd"), ("second", "bcd"):
        if ROLE in roles:
            with cell(name) as computed:
                x = torch.rand(2, 3, device=DEVICE)
                found = torch.compile(double)(x)
                torch.testing.assert_close(found, double(x))
                computed(found)

    if ROLE in "abc":
        jobs = {"profile": ("job", None), "scheduled": (None, ("now" if ROLE == "a" else "next", "5"))}
    else:
        jobs = {"another-job": ("another", None)}
    for name, (job_id, version) in jobs.items():
        patch = mock.patch("torch._utils_internal.get_mast_job_name_version", return_value=version)
        with cell(name, patch, tag="profile", job_id=job_id) as computed:
            counter = CompileCounterWithBackend("inductor")
            compiled = torch.compile(double, backend=counter, fullgraph=True)
            for size in (5, 6) if ROLE in "bc" else (3, 4):
                x = torch.rand(2, size, device=DEVICE)
                torch.testing.assert_close(compiled(x), double(x))
        steps[name]["compiled"] = counter.frame_count
    report(steps=steps)
"""

NOTHING = """
    import torch
    import torch._inductor
    from torch._dynamo import pgo

    torch.compiler.config.job_id = "job"
    torch.testing.assert_close((torch.ones(2) * 2).sum(), torch.tensor(4.0))
    # A profile with a frame of which nothing was noted.
    pgo.get_code_state()[pgo.CodeId.make(report.__code__)]
    pgo.put_code_state()
    report()
"""

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
SHAPES = pytest.mark.parametrize("shape", ["static", "dynamic"])

More = Callable[[Device], tuple[Start, Start]]


@pytest.fixture(scope="module")
def more(round_trip: MakeRoundTrip, fleet: Fleet) -> More:
    """Start on two more fresh machines: C uses what B added, in a script that was moved; D uses all."""

    @cache
    def start(device: Device) -> tuple[Start, Start]:
        trip = round_trip(HOT_LOAD, Caches.LOCAL, device)
        c = trip.start(fleet.fresh(), ROLE="c", name="moved.py")
        return c, trip.start(fleet.fresh(), ROLE="d")

    return start


@pytest.mark.parametrize("autograd_cache", ["autograd-cache", "no-autograd-cache"])
@SHAPES
@DTYPES
def test_what_was_recorded_is_what_is_served(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, dtype: str, shape: str, autograd_cache: str
) -> None:
    trip = round_trip(HOT_LOAD, caches, device)
    step = f"{autograd_cache}-{dtype}-{shape}"
    recorded, served = _artifacts(trip.recorded, step), _artifacts(trip.restored, step)
    assert served == recorded
    assert {kind: len(keys) for kind, keys in recorded.items()} == {
        "inductor": 1,
        "pgo": 1,
        **({"aot_autograd": 1} if autograd_cache == "autograd-cache" else {}),
    }
    # What had been compiled anew would be recorded under the same keys.
    a, b = trip.on_a(step), trip.on_b(step)
    assert [(a.misses, a.hits), (b.misses, b.hits)] == [(1, 0), (0, 1)]
    assert b.aot_autograd["autograd_cache_miss"] == 0
    assert b.aot_autograd["autograd_cache_hit"] == ("aot_autograd" in recorded)
    assert b.computed == a.computed


def test_nothing_else_is_served(round_trip: MakeRoundTrip, caches: Caches, device: Device) -> None:
    trip = round_trip(HOT_LOAD, caches, device)
    recorded, restored = trip.recorded, trip.restored
    assert recorded.warnings == restored.warnings == []
    for kind, namespace in (
        ("inductor", "fx-graph"),
        ("aot_autograd", "aot-autograd"),
        ("autotune", "autotune"),
    ):
        used = _keys(restored, kind)
        new = used - _keys(recorded, kind)
        assert restored.count("bucket_hits", namespace) == len(used - new)
        assert restored.count("puts", namespace) == len(new)
        assert len(new) <= 1
    assert restored.count("bucket_hits", "precompile") == len(_keys(recorded, "precompile")) == 4
    # One profile may be stored in parts; those of all ten steps are of use.
    assert len(_keys(recorded, "pgo")) == len(_keys(restored, "pgo")) == 10
    assert restored.count("bucket_hits", "dynamo-pgo") == recorded.count("puts", "dynamo-pgo")
    assert restored.count("puts", "dynamo-pgo") == restored.count("puts", "precompile") == 0
    assert restored.count("disk_hits") == 0


@SHAPES
@DTYPES
def test_a_package_runs_without_being_compiled(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, dtype: str, shape: str
) -> None:
    trip = round_trip(HOT_LOAD, caches, device)
    step = f"package-{dtype}-{shape}"
    a, b = trip.on_a(step), trip.on_b(step)
    assert a.aot_autograd["autograd_cache_miss"] == 1
    assert a.dynamo_cache == {"dynamo_cache_miss": 1}
    assert b.dynamo_cache == {"dynamo_cache_hit": 1}
    assert b.aot_autograd["autograd_cache_miss"] == b.aot_autograd["autograd_cache_hit"] == 0
    assert b.frames["total"] == b.misses == 0
    assert b.computed == a.computed


def test_what_was_loaded_and_what_was_added_is_there_for_the_next(
    round_trip: MakeRoundTrip, more: More, device: Device
) -> None:
    trip = round_trip(HOT_LOAD, Caches.LOCAL, device)
    c, d = more(device)
    first = [trip.on_a("first"), trip.on_b("first"), step_of(d, "first")]
    second = [trip.on_b("second"), step_of(c, "second"), step_of(d, "second")]
    for one in first, second:
        assert [(step.misses, step.hits) for step in one] == [(1, 0), (0, 1), (0, 1)]
        assert len({tuple(step.computed) for step in one}) == 1
    assert c.warnings == d.warnings == []


@pytest.mark.parametrize("step", ["profile", "scheduled"])
def test_what_was_seen_to_be_dynamic_is_compiled_so_at_once(
    round_trip: MakeRoundTrip, caches: Caches, device: Device, step: str
) -> None:
    trip = round_trip(HOT_LOAD, caches, device)
    assert trip.recorded.facts["steps"][step]["compiled"] == 2
    assert trip.restored.facts["steps"][step]["compiled"] == 1
    assert (trip.on_b(step).misses, trip.on_b(step).hits) == (0, 1)


@pytest.mark.parametrize("step", ["profile", "scheduled"])
def test_a_profile_holds_for_a_script_that_was_moved(more: More, device: Device, step: str) -> None:
    moved, _ = more(device)
    assert moved.facts["steps"][step]["compiled"] == 1
    assert (step_of(moved, step).misses, step_of(moved, step).hits) == (0, 1)
    assert moved.count("puts") == 0


def test_a_profile_is_not_another_jobs(more: More, device: Device) -> None:
    _, another = more(device)
    assert another.facts["steps"]["another-job"]["compiled"] == 2


def test_a_job_that_compiles_nothing_stores_nothing(new_fleet: NewFleet, caches: Caches) -> None:
    fleet = new_fleet()
    fleet.fresh().run(NOTHING, **caches.variables)
    assert fleet.objects() == {}


def _artifacts(start: Start, step: str) -> dict[str, list[str]]:
    """Return the keys of what PyTorch recorded in a step, by type: what it compiled, and what it found."""
    artifacts: dict[str, list[str]] = start.facts["steps"][step]["artifacts"]
    return artifacts


def _keys(start: Start, kind: str) -> set[str]:
    """Return the keys of a type that PyTorch recorded in all steps."""
    return {key for step in start.facts["steps"] for key in _artifacts(start, step).get(kind, ())}
