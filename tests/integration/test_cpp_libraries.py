"""Compiled C++ libraries: a machine that has them in the bucket compiles nothing."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from s3cache.integration.pytorch import cpp_libraries
from tests.integration.starts import Fleet, Machine, Start

FROZEN = """
    import torch
    from torch import nn

    torch._inductor.config.freezing = True
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.randn(5, 8)
    with torch.no_grad():
        report(found=torch.compile(model)(x).sum().item().hex())
"""
"""Weights become constants, which PyTorch's cache of graphs refuses."""

WITH_WORKERS = """
    import torch
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    def f(x):
        return torch.sort(x.cos()).values.cumsum(0).sin()

    x = torch.arange(40.0)
    torch.testing.assert_close(torch.compile(f)(x), f(x))
    AsyncCompile.wait_pool_ready()
    picked = AsyncCompile.process_pool().submit(pick_vec_isa).result()
    report(is_same=str(picked) == str(pick_vec_isa()))
"""
"""Threads compile two libraries at once; a worker process picks a vector ISA, as only probes can."""

CPP_WRAPPER = """
    import torch

    torch._inductor.config.cpp_wrapper = True
    torch._inductor.config.cpp_wrapper_build_separate = True
    x = torch.arange(40.0)
    torch.testing.assert_close(torch.compile(lambda x: (x * 3).sin())(x), (x * 3).sin())
    report()
"""
"""The wrapper is C++ as well, and is linked with the kernels from two objects."""

SIGMOID = """
    import torch

    x = torch.arange(40.0)
    torch.testing.assert_close(torch.compile(lambda x: x.sigmoid() + 1)(x), x.sigmoid() + 1)
    report(torch=torch.__file__)
"""

NO_HEADER = {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
"""For those whose header would not be the one that recorders share. Torch 2.11 precompiles one anyway."""


def test_a_graph_that_pytorch_refuses_to_cache_has_its_libraries(fleet: Fleet, recorded: Start) -> None:
    first = fleet.recorder().start(FROZEN)
    start = fleet.fresh().start(FROZEN)
    assert start.facts["inductor"]["fxgraph_cache_bypass"] == 1
    assert start.facts["aot_autograd"]["autograd_cache_bypass"] == 1
    assert start.facts["found"] == first.facts["found"]
    assert first.compiled
    assert start.compiled == []


def test_inductors_workers_have_the_cache_too(fleet: Fleet, recorded: Start) -> None:
    first = fleet.recorder().start(WITH_WORKERS, TORCHINDUCTOR_COMPILE_THREADS="2")
    assert first.count("puts", "cpp-library") == 2
    start = fleet.fresh().start(WITH_WORKERS, TORCHINDUCTOR_COMPILE_THREADS="2")
    assert start.facts["inductor"]["fxgraph_cache_hit"] == 1
    assert start.facts["is_same"]
    assert start.compiled == []
    assert first.warnings == start.warnings == []


def test_objects_that_are_linked_later_are_not_compiled(fleet: Fleet, recorded: Start) -> None:
    assert fleet.recorder().start(CPP_WRAPPER, **NO_HEADER).compiled
    assert fleet.fresh().start(CPP_WRAPPER, **NO_HEADER).compiled == []


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The interpreter of a virtual environment at another prefix that holds the same packages."""
    prefix = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    (packages,) = prefix.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        (packages / entry.name).symlink_to(entry)
    return prefix / "bin" / "python"


def test_another_prefix_of_the_virtual_environment_is_no_matter(
    fleet: Fleet, recorded: Start, elsewhere: Path
) -> None:
    recorder, machine = fleet.recorder(), fleet.fresh()
    first = recorder.start(SIGMOID, python=elsewhere, **NO_HEADER)
    shutil.rmtree(elsewhere.parents[1])
    start = machine.start(SIGMOID, **NO_HEADER)
    assert first.facts["torch"] != start.facts["torch"]
    assert _libraries(recorder).isdisjoint(_libraries(machine))
    assert sum(".main.cpp" in command for command in first.compiled) == 1
    assert start.compiled == []


def _libraries(machine: Machine) -> set[str]:
    names = {path.name for path in machine.inductor.rglob("*.main.so")}
    assert names
    return names


def test_a_stored_library_that_does_not_load_here_is_gone_and_compiled_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = tmp_path / "kernel.so"
    library.write_bytes(b"for another libstdc++")
    assert not cpp_libraries._loads(library)
    assert not library.exists()
    assert "compiled again" in caplog.text
