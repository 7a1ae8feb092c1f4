"""What Inductor compiles is its graph's to carry: for that long, Triton's hooks keep nothing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch._inductor import config
from torch._inductor.triton_bundler import TritonBundler

pytest.importorskip("triton")

from s3cache import client
from s3cache.integration.pytorch import bundled_kernels
from s3cache.integration.triton import kernels
from s3cache.integration.triton.switch import active_client


@pytest.fixture(autouse=True)
def our_client(monkeypatch: pytest.MonkeyPatch) -> object:
    found = object()
    monkeypatch.setattr(client, "current", lambda: found)
    return found


@pytest.fixture
def bundling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TritonBundler, "_entries", [])


def compiling(**_: bool) -> object:
    return active_client()


@pytest.mark.usefixtures("bundling")
def test_nothing_is_kept_of_what_a_graph_bundles(our_client: object) -> None:
    assert bundled_kernels._precompile_config(compiling, None, (), {}) is None
    assert active_client() is our_client


def test_what_a_loaded_graph_lacked_is_kept(our_client: object) -> None:
    assert bundled_kernels._precompile_config(compiling, None, (), {}) is our_client


def test_a_worker_keeps_nothing_for_the_bundle_is_elsewhere() -> None:
    assert bundled_kernels._precompile(compiling, None, (), {"warm_cache_only": True}) is None


def test_a_worker_keeps_all_where_graphs_bundle_nothing(our_client: object) -> None:
    with config.patch(bundle_triton_into_fx_graph_cache=False):
        assert bundled_kernels._precompile(compiling, None, (), {"warm_cache_only": True}) is our_client


@pytest.mark.usefixtures("bundling")
def test_what_fails_to_compile_leaves_nothing_switched_off(our_client: object) -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        bundled_kernels._precompile_config(fail, None, (), {})
    assert active_client() is our_client


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    folders: list[Path] = []
    monkeypatch.setattr(kernels, "store_folder", folders.append)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return folders


def descend(started_at: object, tune: Callable[[object], object]) -> object:
    autotuner = SimpleNamespace(triton_meta={"device": 0})
    return bundled_kernels._descend(tune, autotuner, (started_at,), {})


def test_of_what_coordinate_descent_tries_it_keeps_where_it_ended(
    stored: list[Path], tmp_path: Path
) -> None:
    seen = []

    def tune(_: object) -> object:
        seen.append(active_client())
        return SimpleNamespace(cache_hash="BEST")

    descend(SimpleNamespace(cache_hash="FIRST"), tune)
    assert seen == [None]
    assert stored == [tmp_path / "BEST"]


def test_a_descent_that_ended_where_it_began_keeps_nothing(stored: list[Path]) -> None:
    first = SimpleNamespace(cache_hash="FIRST")
    assert descend(first, lambda launcher: launcher) is first
    assert stored == []
