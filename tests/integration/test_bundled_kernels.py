"""What Inductor compiles is its graph's to carry: for that long, Triton's hooks keep nothing."""

import pytest
from torch._inductor import config

pytest.importorskip("triton")

from s3cache import client
from s3cache.integration.pytorch import bundled_kernels
from s3cache.integration.triton.switch import active_client


class Autotuner:
    @staticmethod
    def precompile() -> object:
        return active_client()


@pytest.fixture(autouse=True)
def our_client(monkeypatch: pytest.MonkeyPatch) -> object:
    found = object()
    monkeypatch.setattr(client, "current", lambda: found)
    return found


def precompile() -> object:
    return bundled_kernels._precompile_config(Autotuner.precompile, None, (), {})


def test_nothing_is_kept_of_what_a_graph_bundles(our_client: object) -> None:
    assert precompile() is None
    assert active_client() is our_client


def test_all_is_kept_where_graphs_bundle_nothing(our_client: object) -> None:
    with config.patch(bundle_triton_into_fx_graph_cache=False):
        assert precompile() is our_client


def test_what_fails_to_compile_leaves_nothing_switched_off(our_client: object) -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        bundled_kernels._precompile_config(fail, None, (), {})
    assert active_client() is our_client
