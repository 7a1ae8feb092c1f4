"""Of the kernels that a graph brings along, those that it launches are written and no others."""

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from torch._inductor.async_compile import CompiledTritonKernels
from torch._inductor.runtime.triton_heuristics import triton_hash_to_path_key
from torch._inductor.triton_bundler import (
    StaticallyLaunchedAutotuner,
    TritonBundle,
    TritonKernelArtifact,
    TritonKernelArtifacts,
)

from s3cache.integration.pytorch import bundles
from tests.integration.conftest import NewFleet

# As Inductor splices them into a graph's code: each begins with a new line.
LAUNCHED, TUNED, LOST = "\ndef launched(x): '\\n'\n", "\ndef tuned(x): ...\n", "\ndef lost(x): ...\n"


def digest_of(source: str, configuration: int) -> str:
    return hashlib.sha256(f"{source}{configuration}".encode()).hexdigest()


def autotuner(source: str, configurations: int = 1) -> StaticallyLaunchedAutotuner:
    results = [
        SimpleNamespace(kernel=SimpleNamespace(hash=digest_of(source, number)))
        for number in range(configurations)
    ]
    kernel: Any = SimpleNamespace(compile_results=results)
    return StaticallyLaunchedAutotuner(CompiledTritonKernels.key(source), source, kernel)


def artifacts(source: str, configuration: int = 0) -> TritonKernelArtifacts:
    key = triton_hash_to_path_key(digest_of(source, configuration))
    return TritonKernelArtifacts(key, 0, [TritonKernelArtifact("kernel.cubin", source.encode())])


AUTOTUNERS = [autotuner(LAUNCHED), autotuner(TUNED, 2), autotuner(LOST)]
KERNELS = [artifacts(LAUNCHED), artifacts(TUNED, 0), artifacts(TUNED, 1), artifacts(LOST)]


def written_of(*sources: str, autotuners: list[StaticallyLaunchedAutotuner]) -> TritonBundle:
    """Return what PyTorch is left with to write for a graph that defines these kernels."""
    code = "".join(
        f"k{number} = async_compile.triton('k{number}', '''{source}''', device_str='cuda')\n"
        for number, source in enumerate(source.replace("\\", "\\\\") for source in sources)
    )
    graph = SimpleNamespace(source_code=code, _triton_bundle=TritonBundle(KERNELS, autotuners))
    left: TritonBundle = bundles._post_compile(
        lambda graph, *_: graph._triton_bundle, None, (graph, {}), {}
    )
    return left


@pytest.fixture(autouse=True)
def _with_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "active_client", object)


def test_choices_that_lost_are_not_written() -> None:
    left = written_of(LAUNCHED, TUNED, autotuners=AUTOTUNERS)
    assert left.static_autotuners == AUTOTUNERS[:2]
    assert left.kernel_artifacts == KERNELS[:3]


def test_all_is_written_where_triton_compiles_a_kernel_of_the_graph() -> None:
    left = written_of(LAUNCHED, TUNED, autotuners=[AUTOTUNERS[0], AUTOTUNERS[2]])
    assert left == TritonBundle(KERNELS, [AUTOTUNERS[0], AUTOTUNERS[2]])


@pytest.mark.parametrize("autotuners", [[], AUTOTUNERS])
def test_all_is_written_for_a_graph_that_defines_no_kernel(
    autotuners: list[StaticallyLaunchedAutotuner],
) -> None:
    assert written_of(autotuners=autotuners) == TritonBundle(KERNELS, autotuners)


def test_all_is_written_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "active_client", lambda: None)
    assert written_of(LAUNCHED, autotuners=AUTOTUNERS) == TritonBundle(KERNELS, AUTOTUNERS)


TUNED_ON_A_GPU = """
import torch
torch._inductor.config.max_autotune_gemm_backends = "TRITON"

@torch.compile(mode="max-autotune-no-cudagraphs")
def step(x, y):
    return torch.relu(x @ y)

half = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
report(sum=step(half, half).float().sum().item())
"""


@pytest.mark.gpu
def test_a_fresh_machine_has_the_kernels_that_are_launched_only(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    recorder, machine = fleet.recorder(), fleet.fresh()
    recorded, fresh = recorder.run(TUNED_ON_A_GPU), machine.run(TUNED_ON_A_GPU)
    made, here = (len(list(each.folder.rglob("*.cubin"))) for each in (recorder, machine))
    assert fresh.facts["inductor"]["fxgraph_cache_hit"] == 1
    assert fresh.facts["inductor"]["triton_bundler_load_static_autotuner"] >= 1
    assert fresh.count("misses", "triton") == 0
    assert 0 < here < made / 4
    assert abs(fresh.facts["sum"] - recorded.facts["sum"]) <= 1e-2 * abs(recorded.facts["sum"])
