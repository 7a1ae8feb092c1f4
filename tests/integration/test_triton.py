"""Triton's own cache: kernels, libraries and timings of one machine on another one, without a GPU."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import NewFleet
from tests.integration.starts import Fleet, Machine, Start

pytest.importorskip("triton")

KERNELS = """
import sys
import torch, triton
import triton.language as tl
from triton import knobs
from triton.runtime.cache import get_cache_manager
from s3cache.kernels.target import Target, compiling_for

found = []

def listen(*, metadata, cache_hit, **_):
    found.append(cache_hit)

knobs.compilation.listener = listen

@triton.jit
def add(x, y, out, size, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    tl.store(out + at, tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside), mask=inside)

def kernel(block=128):
    with compiling_for(Target("cuda", 90)):
        kind = torch.float32
        return add.warmup(kind, kind, kind, 1000, block=block, grid=(1,))

def folder_of(kernel):
    return sorted(path.name for path in pathlib.Path(kernel.metadata_group["add.json"]).parent.iterdir())
"""
ADD = (
    KERNELS
    + """
import pickle

made = kernel()
asm, handed_over = sorted(made.asm), sorted(pickle.loads(pickle.dumps(made.asm)))
files, text = folder_of(made), made.asm["ptx"]
report(found=found, asm=asm, handed_over=handed_over, files=files, hash=made.hash, text=text)
"""
)
LAUNCH = (
    KERNELS
    + """
made = kernel()
report(found=found, asm=sorted(made.asm), files=folder_of(made), hash=made.hash)
"""
)
LAUNCHABLE = ["__grp__add.json", "add.cubin", "add.json"]
ALL = sorted([*LAUNCHABLE, "add.llir", "add.ptx", "add.source", "add.ttgir", "add.ttir"])
HASH = "ab" * 32


def groups(machine: Machine) -> list[Path]:
    return list(machine.folder.glob("triton-cache/*/__grp__add.json"))


@pytest.fixture(scope="module")
def triton_fleet(new_fleet: NewFleet) -> Fleet:
    return new_fleet()


@pytest.fixture(scope="module")
def recording(triton_fleet: Fleet) -> Machine:
    return triton_fleet.recorder()


@pytest.fixture(scope="module")
def recorded_kernel(recording: Machine) -> Start:
    """The start that compiled a kernel first."""
    return recording.run(ADD)


@pytest.fixture(scope="module")
def fetched_kernel(triton_fleet: Fleet, recorded_kernel: Start) -> Start:
    """The start of a fresh machine that asked for a text."""
    return triton_fleet.fresh().run(ADD)


def test_a_kernel_is_compiled_once_and_stored(recorded_kernel: Start) -> None:
    assert recorded_kernel.facts["found"] == [False]
    assert recorded_kernel.facts["files"] == ALL
    assert recorded_kernel.count("puts", "triton") == 1


@pytest.mark.usefixtures("recorded_kernel")
def test_a_fresh_machine_compiles_nothing_and_fetches_what_a_launch_needs(
    triton_fleet: Fleet, recorded_kernel: Start
) -> None:
    fresh = triton_fleet.fresh().run(LAUNCH)
    assert fresh.facts["found"] == [True]
    assert fresh.facts["asm"] == ["cubin"]
    assert fresh.facts["files"] == LAUNCHABLE
    assert fresh.facts["hash"] == recorded_kernel.facts["hash"]
    assert fresh.count("bucket_hits", "triton") == 1
    assert fresh.count("misses") == 0


def test_a_text_comes_when_it_is_asked_for(fetched_kernel: Start, recorded_kernel: Start) -> None:
    assert fetched_kernel.facts["found"] == [True]
    assert fetched_kernel.facts["asm"] == ["cubin"]
    assert fetched_kernel.facts["text"] == recorded_kernel.facts["text"]


def test_a_compile_worker_can_hand_over_a_kernel_without_texts(
    fetched_kernel: Start, recorded_kernel: Start
) -> None:
    assert fetched_kernel.facts["handed_over"] == ["cubin"]
    assert recorded_kernel.facts["handed_over"] == recorded_kernel.facts["asm"]


@pytest.mark.usefixtures("recorded_kernel")
def test_what_is_fetched_holds_no_path_of_the_machine_that_wrote_it(
    triton_fleet: Fleet, recording: Machine
) -> None:
    machine = triton_fleet.fresh()
    machine.run(LAUNCH)
    (group,) = groups(machine)
    assert all(
        Path(path).parent == group.parent for path in json.loads(group.read_text())["child_paths"].values()
    )
    for path in group.parent.glob("*.json"):
        assert str(recording.folder) not in path.read_text()
        assert "<triton>" not in path.read_text()


def test_a_kernel_on_disk_costs_no_request(new_fleet: NewFleet) -> None:
    machine = new_fleet().recorder()
    machine.run(LAUNCH)
    again = machine.run(LAUNCH)
    assert again.facts["found"] == [True]
    assert again.cache["requests"] == {"GET": 0, "PUT": 0, "LIST": 1, "DELETE": 0}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no binary": lambda group: group.with_name("add.cubin").unlink(),
    "no metadata": lambda group: group.with_name("add.json").unlink(),
    "no json": lambda group: group.write_text("{"),
    "another json": lambda group: group.write_text("[]"),
    "empty group": lambda group: group.write_text('{"child_paths": {}}'),
}
"""What may have become of the group of a kernel in Triton's folder."""
SEVERAL = (
    KERNELS
    + f"""
made = [kernel(32 << number) for number in range({len(DAMAGES)})]
report(found=found, files=[folder_of(each) for each in made])
"""
)


def test_groups_in_tritons_folder_that_are_not_whole_are_fetched_again(triton_fleet: Fleet) -> None:
    triton_fleet.recorder().run(SEVERAL)
    machine = triton_fleet.fresh()
    machine.run(SEVERAL)
    for group, damage in zip(groups(machine), DAMAGES.values(), strict=True):
        damage(group)
    again = machine.run(SEVERAL)
    assert again.facts["found"] == [True] * len(DAMAGES)
    assert again.facts["files"] == [LAUNCHABLE] * len(DAMAGES)


def test_a_damaged_kernel_in_the_bucket_is_compiled_again_and_mended(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.recorder().run(LAUNCH)
    fleet.cut("packs/")
    fleet.cut("preludes/")
    damaged = fleet.fresh().start(LAUNCH)
    assert damaged.facts["found"] == [False]
    mended = fleet.fresh().start(LAUNCH)
    assert mended.facts["found"] == [True]


MODULE = """
import torch, triton
from triton.runtime.build import compile_module_from_src

SOURCE = '''
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "answer", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_answer(void) {
    PyObject *made = PyModule_Create(&module);
    PyModule_AddIntConstant(made, "value", 42);
    return made;
}
'''
answer = compile_module_from_src(SOURCE, "answer")
report(value=answer.value)
"""


def test_a_library_is_compiled_once_and_needs_no_compiler_elsewhere(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    recorded = fleet.recorder().run(MODULE)
    assert recorded.facts["value"] == 42
    assert len(recorded.compiled) == 1
    fresh = fleet.fresh().run(MODULE, PATH="/nowhere")
    assert fresh.facts["value"] == 42
    assert fresh.compiled == []
    assert fresh.count("bucket_hits", "triton-library") == 1


TIMINGS = f"""
import torch, triton
from triton import knobs
from triton.runtime.cache import get_cache_manager

manager = get_cache_manager("{HASH}")
path = manager.get_file("kernel.autotune.json")
was_there = path is not None
if not was_there:
    path = manager.put('{{"timings": 1}}', "kernel.autotune.json", binary=False)
report(was_there=was_there, text=pathlib.Path(path).read_text(), kept=knobs.autotuning.cache)
"""


def test_an_autotuners_timings_are_measured_once(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    recorded, fresh = fleet.recorder().run(TIMINGS), fleet.fresh().run(TIMINGS)
    assert (recorded.facts["was_there"], fresh.facts["was_there"]) == (False, True)
    assert fresh.facts["text"] == recorded.facts["text"] == '{"timings": 1}'
    assert fresh.facts["kept"]


@pytest.mark.usefixtures("recorded_kernel")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_find_kernels_as_well(triton_fleet: Fleet, method: str) -> None:
    script = f"""
    import multiprocessing

    def work(_):
        made = kernel()
        return found

    if __name__ == "__main__":
        with multiprocessing.get_context("{method}").Pool(2) as pool:
            report(found=pool.map(work, range(2)))
    """
    fresh = triton_fleet.fresh().run(KERNELS + "\n".join(line[4:] for line in script.splitlines()))
    assert all(hit for found in fresh.facts["found"] for hit in found)
    assert fresh.count("misses", "triton") == 0


@pytest.mark.usefixtures("recorded_kernel")
def test_dumps_and_overrides_are_tritons(triton_fleet: Fleet) -> None:
    machine = triton_fleet.fresh()
    dumped = machine.run(LAUNCH, TRITON_KERNEL_DUMP="1", TRITON_ALWAYS_COMPILE="1")
    assert dumped.facts["found"] == [False]
    (text,) = (machine.folder / "home").glob(".triton/dump/*/add.ttir")
    target = machine.folder / "home/.triton/override" / text.parent.name / "add.ttir"
    target.parent.mkdir(parents=True)
    target.write_text(text.read_text())
    overridden = machine.run(LAUNCH, TRITON_KERNEL_OVERRIDE="1", TRITON_ALWAYS_COMPILE="1")
    assert "Overriding kernel" in overridden.said


MANAGER = """
import torch, triton
from triton import knobs
from triton.runtime.cache import FileCacheManager

class Mine(FileCacheManager):
    pass

found = knobs.cache.manager_class
report(manager=found and found.__name__)
"""


def test_a_manager_that_the_user_chose_stays(triton_fleet: Fleet) -> None:
    start = triton_fleet.fresh().run(
        MANAGER, name="mine.py", TRITON_CACHE_MANAGER="triton.runtime.cache:FileCacheManager"
    )
    assert start.facts["manager"] == "FileCacheManager"


def test_without_the_cache_triton_is_stock(triton_fleet: Fleet) -> None:
    start = triton_fleet.fresh().run(MANAGER, S3CACHE_MODE="off")
    assert start.facts["manager"] is None


COMPILED = """
import torch

@torch.compile
def step(x):
    return torch.softmax(x * 2, -1)

step(torch.randn(64, 64, device="cuda"))
report()
"""


@pytest.mark.gpu
def test_what_a_graph_carries_is_not_stored_twice(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    recorded, fresh = fleet.recorder().run(COMPILED), fleet.fresh().run(COMPILED)
    assert recorded.count("puts", "fx-graph") == 1
    assert recorded.cache["namespaces"].get("triton", {}).get("puts", 0) == 0
    assert fresh.count("bucket_hits", "fx-graph") == 1
    assert fresh.count("misses") == 0


DESCENDED = """
import torch
from torch._dynamo.utils import counters
from torch._inductor import config
from triton import knobs

found = []

def listen(*, metadata, cache_hit, **_):
    found.append(cache_hit)

knobs.compilation.listener = listen
config.coordinate_descent_tuning = True

@torch.compile
def step(x):
    return torch.softmax(x * 2, -1).sum(-1)

step(torch.randn(4096, 4096, device="cuda"))
report(found=found, tried=counters["inductor"]["coordesc_tuning_bench"])
"""


@pytest.mark.gpu
def test_where_coordinate_descent_ended_is_not_compiled_again(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    recorded, second = fleet.recorder().run(DESCENDED), fleet.fresh().run(DESCENDED)
    third = fleet.fresh().run(DESCENDED)
    assert False in recorded.facts["found"]
    assert recorded.facts["tried"] > 0
    assert second.facts["tried"] == third.facts["tried"] == 0
    # What a graph that was loaded compiles differs in its key from what a worker compiled: once, for all.
    assert second.facts["found"].count(False) < recorded.facts["found"].count(False)
    assert False not in third.facts["found"]
    assert third.count("misses") == third.count("puts") == 0
