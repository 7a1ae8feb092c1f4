"""What one machine measured to choose its kernels for matrix products, the next does not measure."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from s3cache.integration.pytorch import gemm_timings
from s3cache.manifest import Entry
from tests.integration.starts import Fleet, Start

TRAIN = """
    import math
    import torch
    from torch._inductor import config
    from torch._inductor.codecache import LocalCache

    cache = LocalCache()
    values = {"pad mm": True, "keep": False, "time": 0.25, "failed": math.inf, "c10d.all_reduce": 1.0}
    if "WRITE" in os.environ:
        for key, value in values.items():
            cache.set_value(key, value=value)
    found = {key: repr(cache.lookup(key)) for key in [*values, "never seen"]}

    # A graph that is found is not lowered: then there is nothing to choose.
    config.fx_graph_cache = False

    sizes = [int(size) for size in os.environ["LAYERS"].split()]
    weights = [torch.ones(2, a, b) for a, b in zip(sizes, sizes[1:])]

    @torch.compile(options={"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"})
    def model(x):
        for weight in weights:
            x = torch.bmm(x, weight)
        return x

    model(torch.ones(2, 16, sizes[0]))
    report(values=found)
"""


@pytest.fixture(scope="module")
def recorded(fleet: Fleet) -> Start:
    """A start that measured one product, and wrote some single values."""
    return fleet.recorder().run(TRAIN, name="measures.py", LAYERS="32 64", WRITE="")


@pytest.fixture(scope="module")
def restored(fleet: Fleet, recorded: Start) -> Start:
    """A start on another machine, with one more product."""
    return fleet.recorder().run(TRAIN, name="measures.py", LAYERS="32 64 96")


def test_only_what_is_new_is_measured(recorded: Start, restored: Start) -> None:
    assert recorded.facts["inductor"]["select_algorithm_autotune"] == 1
    assert restored.facts["inductor"]["select_algorithm_autotune"] == 1


def test_single_values_carry_over_except_those_of_a_cluster(recorded: Start, restored: Start) -> None:
    written = recorded.facts["values"]
    assert written["failed"] == "inf"
    assert restored.facts["values"] == written | {"c10d.all_reduce": "None"}


class Local:
    """Inductor's local cache, in memory."""

    def __init__(self) -> None:
        self.system = {"hash": "system"}
        self.cache: dict[str, Any] = {}

    def get_local_cache_path(self) -> Path:
        return Path(f"/nowhere/{id(self)}")

    def get_local_cache(self) -> dict[str, Any]:
        return self.cache

    def update_local_cache(self, cache: dict[str, Any]) -> None:
        self.cache = cache


class Kernel:
    def __init__(self, name: str) -> None:
        self.name = name

    def hash_key(self) -> str:
        return self.name


def test_times_of_two_measurements_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[dict[str, float]] = [{"a": 1.0}, {"b": 2.0}, {"a": 3.0, "b": math.inf, "c": 4.0}]

    class Client:
        def variants(self, namespace: str, key: str) -> list[Entry]:
            contents = [json.dumps(timings).encode() for timings in stored]
            return [Entry(namespace, key, n, "", {}, {"timings": c}) for n, c in enumerate(contents)]

    monkeypatch.setattr(gemm_timings, "active_client", Client)
    local = Local()
    call = {"choices": [Kernel("a"), Kernel("b")], "op": "mm", "inputs": "shapes", "hint_override": None}
    gemm_timings._restore(local, call)
    ((times),) = local.cache["mm"]["shapes"].values()
    assert times == stored[2]
