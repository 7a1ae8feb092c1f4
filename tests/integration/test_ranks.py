"""Ranks: those of a pinned job find the same, on one machine and on several."""

import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch.distributed as dist

from s3cache.integration.pytorch import ranks
from s3cache.view import View
from tests.integration.conftest import NewFleet
from tests.integration.starts import START_SECONDS, Fleet, Machine, Start
from tests.processes.machines import wait_for
from tests.processes.stubs import REFUSING
from tests.servers import free_ports

PATIENCE_SECONDS = 3.0

# Settling, in the store of a process group.


def view(*numbers: int) -> View:
    return View(frozenset(number.to_bytes(8, "little") for number in numbers))


@pytest.fixture
def store() -> Any:
    (port,) = free_ports(1)
    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def settled(store: Any, views: dict[int, View], size: int, late: int | None = None) -> list[View]:
    """Return what each of these ranks comes to see; one of them may come late."""

    def run(rank: int) -> View:
        if rank == late:
            time.sleep(0.3)
        # Each rank has a connection of its own.
        own = dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        return ranks.settle(dist.PrefixStore("s3cache", own), rank, size, PATIENCE_SECONDS, views[rank])

    with ThreadPoolExecutor(len(views)) as pool:
        return list(pool.map(run, views))


@pytest.mark.parametrize("late", [0, 3])
def test_ranks_see_what_all_have(store: Any, late: int) -> None:
    views = {0: view(1, 2, 3), 1: view(1, 2, 3), 2: view(2, 3, 4), 3: view(2, 3, 4)}
    assert settled(store, views, 4, late) == [view(2, 3)] * 4


def test_ranks_that_have_the_same_see_all_of_it(store: Any) -> None:
    everything = view(*range(5000))
    assert settled(store, dict.fromkeys(range(3), everything), 3) == [everything] * 3


@pytest.mark.parametrize("late", [0, 2])
def test_a_rank_that_comes_too_late_sees_nothing_as_the_others_do(store: Any, late: int) -> None:
    views = dict.fromkeys(range(3), view(1))
    began = time.monotonic()
    assert settled(store, {rank: views[rank] for rank in views if rank != late}, 3) == [View()] * 2
    assert settled(store, {late: views[late]}, 3) == [View()]
    assert time.monotonic() - began < 2 * PATIENCE_SECONDS


@pytest.mark.parametrize("seconds", [0.0, 0.0004])
@pytest.mark.parametrize(
    "new_store", [lambda _: dist.HashStore(), lambda folder: dist.FileStore(str(folder / "store"), 2)]
)
def test_a_rank_that_may_not_wait_does_not(
    tmp_path: Path, new_store: Callable[[Path], Any], seconds: float
) -> None:
    store, seen = dist.PrefixStore("s3cache", new_store(tmp_path)), []
    # A daemon: to these stores no time at all may be no bound.
    rank = threading.Thread(
        target=lambda: seen.append(ranks.settle(store, 1, 2, seconds, view(1))), daemon=True
    )
    rank.start()
    rank.join(10.0)
    assert seen == [View()]


# Facts.


def test_what_a_machine_says_of_itself_is_known_before_anything_is_compiled() -> None:
    """And neither Triton nor Inductor is imported to know it."""
    script = f"""
        import sys, torch
        from s3cache.client import machine
        from s3cache.integration.pytorch import ranks

        extension = {{"extension": {sysconfig.get_config_var("EXT_SUFFIX")!r}}}
        assert not machine.meets(extension)
        assert ranks._unknown() == {{"gpu"}}
        assert machine.meets(extension)
        assert {{"cpu_flags", "glibc", "vec_isa", "threads", "gpu"}} <= machine._facts.keys()
        assert not {{"triton", "torch._dynamo"}} & set(sys.modules)
        torch.cuda.is_initialized = lambda: True
        assert ranks._unknown() == set()
    """
    subprocess.run([sys.executable, "-c", dedent(script)], check=True, timeout=START_SECONDS)


# Jobs.

SQUARE = """
    import time, torch

    rank = os.environ.get("RANK")
    if rank:
        # PyTorch's own folder, where one rank would find what another one compiled.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] += f"/{rank}"
        torch.distributed.init_process_group("gloo")
        pathlib.Path(f"waits-{rank}").touch()
        while not pathlib.Path(f"goes-{rank}").exists():
            time.sleep(0.01)

    def is_found(function):
        counters = torch._dynamo.utils.counters["inductor"]
        before = counters["fxgraph_cache_hit"]
        torch.compile(function)(torch.ones(4, 4))
        return counters["fxgraph_cache_hit"] > before

    found = {"square": is_found(lambda x: x @ x)}
"""
CUBE = """
    found["cube"] = is_found(lambda x: x @ x @ x)
"""
SINE = """
    # Of C++ source that is written for a vector unit; the products are a library's.
    found["sine"] = is_found(lambda x: x.sin() + 1)
"""
END = """
    report(found=found)
    if rank:
        torch.distributed.all_reduce(torch.ones(1))
        torch.distributed.destroy_process_group()
"""


def go(machine: Machine, *numbers: int) -> None:
    """Let ranks of a job compile, and wait until they have."""
    for number in numbers:
        wait_for((machine.folder / f"waits-{number}").exists, f"rank {number}", START_SECONDS)
        (machine.folder / f"goes-{number}").touch()
    for number in numbers:
        wait_for((machine.folder / f"facts-{number}.json").exists, f"rank {number}", START_SECONDS)


def found(start: Start) -> list[dict[str, bool]]:
    return [rank["found"] for rank in start.ranks]


@dataclass(frozen=True)
class Recorded:
    """Two machines of a fleet: one that saw only the square recorded, and one that saw all."""

    fleet: Fleet
    behind: Machine
    ahead: Machine


@pytest.fixture(scope="module")
def recorded(new_fleet: NewFleet) -> Recorded:
    fleet = new_fleet()
    recorder = fleet.recorder()
    recorder.run(SQUARE + END)
    behind = fleet.copy_of(recorder, "cache/tier")
    recorder.run(SQUARE + CUBE + SINE + END)
    return Recorded(fleet, behind, fleet.copy_of(recorder, "cache/tier"))


def test_ranks_that_start_while_entries_appear_find_the_same(
    new_fleet: NewFleet, recorded: Recorded
) -> None:
    fleet = new_fleet()
    machine = fleet.fresh()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    settings = {"S3CACHE_PIN": "1", "S3CACHE_MODE": "read-only"}
    with ThreadPoolExecutor() as pool:
        job = pool.submit(machine.run, SQUARE + END, launcher=launcher, **settings)
        go(machine, 0, 2)
        fleet.receive(recorded.fleet)
        go(machine, 1, 3)
        start = job.result()
    assert found(start) == [{"square": False}] * 4
    assert start.cache["pinned"] == 0


def start_on(script: str, *machines: tuple[Machine, Mapping[str, str]]) -> list[Start]:
    """Start a pinned job on several machines, with one rank and some more settings on each."""
    (port,) = free_ports(1)
    launcher = ["-m", "torch.distributed.run", "--nnodes", str(len(machines)), "--nproc-per-node", "1"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank"]
    for number, (machine, _) in enumerate(machines):
        (machine.folder / f"goes-{number}").touch()
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(
                machine.start, script, launcher=[*launcher, str(number)], S3CACHE_PIN="1", **settings
            )
            for number, (machine, settings) in enumerate(machines)
        ]
        return [job.result() for job in jobs]


def test_ranks_on_two_machines_find_what_both_have(recorded: Recorded) -> None:
    """One machine has what the other one lacks, and cannot fetch for want of a bucket."""
    behind = recorded.behind, {"AWS_ENDPOINT_URL_S3": REFUSING}
    starts = start_on(SQUARE + CUBE + END, (recorded.ahead, {}), behind)
    assert [found(start) for start in starts] == [[{"square": True, "cube": False}]] * 2
    assert starts[0].cache["pinned"] == starts[1].cache["pinned"] > 0
    assert starts[0].warnings == []


def test_ranks_on_machines_with_unlike_vector_units_find_nothing_that_only_one_may_use(
    recorded: Recorded,
) -> None:
    """The key of a graph is the same on both, and so are the flags of the CPU."""
    like, unlike = (recorded.fleet.copy_of(recorded.ahead, "cache/tier") for _ in range(2))
    starts = start_on(SQUARE + SINE + END, (like, {}), (unlike, {"ATEN_CPU_CAPABILITY": "default"}))
    assert [found(start) for start in starts] == [[{"square": True, "sine": False}]] * 2
    assert starts[0].cache["pinned"] == starts[1].cache["pinned"]


def test_ranks_on_machines_that_are_alike_find_what_requires_something(recorded: Recorded) -> None:
    one, other = (recorded.fleet.copy_of(recorded.ahead, "cache/tier") for _ in range(2))
    starts = start_on(SQUARE + SINE + END, (one, {}), (other, {}))
    assert [found(start) for start in starts] == [[{"square": True, "sine": True}]] * 2
    assert [start.compiled for start in starts] == [[], []]
