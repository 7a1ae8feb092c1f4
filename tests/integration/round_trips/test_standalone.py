"""Standalone artifacts: files that the user moves. What they are made of is found in the bucket."""

import shutil
from collections.abc import Callable
from functools import cache

import pytest

from tests.integration.round_trips.trips import Caches, Device, RoundTrip, travel
from tests.integration.starts import Fleet, Machine

ARTIFACTS = """
    from torch._inductor import CompiledArtifact, config, standalone_compile
    from torch._inductor.utils import fresh_cache

    folder = pathlib.Path("artifacts").absolute()
    folder.mkdir(exist_ok=True)
    kinds = {"plain": False, "aot": True}
    functions = {"static": lambda x: (x + 1).sin() * 7.25, "dynamic": lambda x: (x + 2).sin() * 7.25}
    compiled = {}

    def vector(size):
        return torch.arange(float(size), device=DEVICE)

    def arguments(shape, size=6):
        return (vector(size),) if shape == "static" else (size, vector(size))

    def check(artifact, fn, given):
        (found,) = artifact(*given)
        torch.testing.assert_close(found, fn(given[-1]))
        return found

    def make(fn, shape, aot):
        made = []

        def backend(graph, inputs):
            made.append(standalone_compile(graph, inputs, aot=aot))
            return graph

        x = vector(6)
        if shape == "dynamic":
            torch._dynamo.mark_dynamic(x, 0)
        torch.compile(fn, backend=backend, fullgraph=True)(x)
        return made[0]

    @contextmanager
    def empty_folders(name, *patches):
        with step(name, *patches) as computed, fresh_cache():
            yield computed

    for shape, fn in functions.items():
        for kind, aot in kinds.items():
            with step(f"{shape}-{kind}") as computed:
                artifact = make(fn, shape, aot)
                computed(check(artifact, fn, arguments(shape)))
            for form in ["binary"] if aot else ["binary", "unpacked"]:
                path = folder / f"{shape}-{kind}.{form}"
                if ROLE == "a":
                    artifact.save(path=str(path), format=form)
                    continue
                with empty_folders(f"{path.name}-loaded") as computed:
                    loaded = CompiledArtifact.load(path=str(path), format=form)
                    computed(check(loaded, fn, arguments(shape)))
                    if shape == "dynamic":
                        check(loaded, fn, arguments(shape, size=9))

    errors = {}

    def refused(name, fn, aot, *patches):
        with step(name, *patches):
            artifact = make(fn, "static", aot)
            check(artifact, fn, arguments("static"))
            try:
                artifact.save(path=str(folder / "refused"))
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"

    reasons = {
        "bypassed": {"post_grad_custom_pre_pass": lambda graph: None},
        "off": {"fx_graph_cache": False, "fx_graph_remote_cache": False},
    }
    for reason, options in reasons.items():
        for kind, aot in kinds.items():
            refused(f"{reason}-{kind}", functions["static"], aot, config.patch(options))

    if ROLE == "b":
        edited = float(os.environ["EDITED"])
        path = folder / "edited.unpacked"
        with empty_folders("edited") as computed:
            loaded = CompiledArtifact.load(path=str(path), format="unpacked")
            computed(check(loaded, lambda x: (x + 1).sin() * edited, arguments("static")))
    report(steps=steps, errors=errors, has_refused=(folder / "refused").exists())
"""
FACTOR = "7.25"
EDITED = {Caches.LOCAL: "9.25", Caches.REMOTE: "5.25"}
"""What the factor is edited into; others for another run, since libraries are found by all."""

GRAPHS = ("manifests/fx-graph/", "manifests/aot-autograd/")
LIBRARIES = "manifests/cpp-library/"


Move = Callable[[Caches, Device], tuple[RoundTrip, set[str]]]


@pytest.fixture(scope="module")
def move(fleet: Fleet) -> Move:
    """Copy the artifacts that A saved to B, edit one of them there, and start B.

    Beside the round trip, return what B added to the bucket.
    """

    @cache
    def make(caches: Caches, device: Device) -> tuple[RoundTrip, set[str]]:
        stored: set[str] = set()

        def copy_and_edit(a: Machine, b: Machine) -> None:
            artifacts = b.folder / "artifacts"
            shutil.copytree(a.folder / "artifacts", artifacts)
            shutil.copytree(artifacts / "static-plain.unpacked", artifacts / "edited.unpacked")
            codes = list((artifacts / "edited.unpacked").glob("*/*.py"))
            assert any(FACTOR in code.read_text() for code in codes)
            for code in codes:
                code.write_text(code.read_text().replace(FACTOR, EDITED[caches]))
            stored.update(fleet.objects())

        # B has a library to compile, for which it needs the precompiled header that recorders share.
        b = fleet.recorder()
        trip = travel(fleet, ARTIFACTS, caches, device, b=b, prepare=copy_and_edit, EDITED=EDITED[caches])
        return trip, fleet.objects().keys() - stored

    return make


@pytest.mark.parametrize("kind", ["plain", "aot"])
@pytest.mark.parametrize("shape", ["static", "dynamic"])
def test_a_graph_is_compiled_to_an_artifact_from_the_bucket(
    move: Move, caches: Caches, device: Device, shape: str, kind: str
) -> None:
    trip, _ = move(caches, device)
    a, b = trip.on_a(f"{shape}-{kind}"), trip.on_b(f"{shape}-{kind}")
    # An artifact compiled ahead of time holds its graph, which is not cached for itself.
    graphs = 1 if kind == "plain" else 0
    assert (a.misses, a.hits, b.misses, b.hits) == (graphs, 0, 0, graphs)
    assert (a.aot_autograd["autograd_cache_miss"], a.aot_autograd["autograd_cache_hit"]) == (1, 0)
    assert (b.aot_autograd["autograd_cache_miss"], b.aot_autograd["autograd_cache_hit"]) == (0, 1)
    assert b.computed == a.computed


@pytest.mark.parametrize(("kind", "form"), [("plain", "binary"), ("plain", "unpacked"), ("aot", "binary")])
@pytest.mark.parametrize("shape", ["static", "dynamic"])
def test_a_saved_artifact_is_loaded(
    move: Move, caches: Caches, device: Device, shape: str, kind: str, form: str
) -> None:
    trip, _ = move(caches, device)
    saved, loaded = trip.on_a(f"{shape}-{kind}"), trip.on_b(f"{shape}-{kind}.{form}-loaded")
    assert (loaded.misses, loaded.hits) == (0, 1 if kind == "plain" else 0)
    # The code is written anew, unless it came unpacked.
    assert loaded.inductor["fxgraph_lookup_write_file"] == (0 if form == "unpacked" else 1)
    assert loaded.computed == saved.computed


def test_an_edited_artifact_takes_effect_and_its_graph_stays_where_it_is(
    move: Move, caches: Caches, device: Device
) -> None:
    trip, added = move(caches, device)
    original, edited = trip.on_b("static-plain.unpacked-loaded"), trip.on_b("edited")
    assert (edited.misses, edited.hits) == (0, 1)
    assert edited.computed != original.computed
    assert not [name for name in added if name.startswith(GRAPHS)]


def test_of_all_libraries_only_that_of_the_edited_source_is_compiled_and_stored(
    move: Move, caches: Caches
) -> None:
    trip, added = move(caches, Device.CPU)
    (library,) = [command for command in trip.restored.compiled if ".main.cpp" in command]
    assert "/edited.unpacked/" in library
    assert len([name for name in added if name.startswith(LIBRARIES)]) == 1


@pytest.mark.parametrize("kind", ["plain", "aot"])
@pytest.mark.parametrize("why", ["bypassed", "off"])
def test_what_pytorch_does_not_cache_is_not_saved(
    move: Move, caches: Caches, device: Device, why: str, kind: str
) -> None:
    trip, _ = move(caches, device)
    for start, step in (trip.recorded, trip.on_a), (trip.restored, trip.on_b):
        counts = step(f"{why}-{kind}")
        assert (counts.misses, counts.hits) == (0, 0)
        assert counts.aot_autograd["autograd_cache_bypass"] == 1
        error = start.facts["errors"][f"{why}-{kind}"]
        assert error.startswith(
            "RuntimeError: CompiledArtifact" if kind == "plain" else "TypeError: 'NoneType'"
        )
        assert not start.facts["has_refused"]
        assert start.warnings == []
