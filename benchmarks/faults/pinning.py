"""Ranks that start at different times while entries appear: python -m benchmarks.faults.pinning

Four ranks of torchrun, on gloo, compile six functions each; meanwhile another machine's results arrive in
the bucket, one after the other. The same without a pin shows that the ranks would differ.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console

from benchmarks.bars import Number, table
from benchmarks.compilers import write_shims
from tests.integration.starts import Fleet, Start
from tests.processes.stubs import REFUSING
from tests.servers import Server, free_ports, seaweedfs

BUCKET = "pinning"
RANKS = 4
LATEST_SECONDS = 8.0
"""A rank starts to compile up to so long after the first one."""
ARRIVAL_SECONDS = 0.3
"""Between two objects; there are eighteen or so."""
JOB = """
    import random, time, torch

    rank, attempt = os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if rank:
        # PyTorch's own folder, where one rank would find what another one compiled.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] += f"/{rank}-{attempt}"
        torch.distributed.init_process_group("gloo")
        # What all import is out of the way, so that it is the pauses that set the ranks apart.
        import torch._inductor.compile_fx
        torch.compile(lambda x: x, backend="eager")(torch.ones(1))
        torch.distributed.barrier()
        pathlib.Path(f"compiles-{rank}-{attempt}").touch()
        time.sleep(random.Random(f"{SEED} {rank} {attempt}").uniform(0, LATEST))

    def is_found(function):
        counters = torch._dynamo.utils.counters["inductor"]
        before = counters["fxgraph_cache_hit"]
        torch.compile(function)(torch.ones(4, 4))
        return counters["fxgraph_cache_hit"] > before

    functions = [
        lambda x: x @ x,
        lambda x: x @ x @ x,
        lambda x: x @ x @ x @ x,
        lambda x: x @ x @ x @ x @ x,
        lambda x: x @ x @ x @ x @ x @ x,
        lambda x: x @ x @ x @ x @ x @ x @ x,
    ]
    found = [is_found(function) for function in functions[:FUNCTIONS]]
    if rank == "1" and attempt == "0" and DIES:
        os._exit(1)
    report(found=found)
    if rank:
        torch.distributed.all_reduce(torch.ones(1))
        torch.distributed.destroy_process_group()
"""


def job(seed: int = 0, functions: int = 6, dies: bool = False) -> str:
    """Return a job that compiles so many functions, at moments that its ranks choose by `seed`."""
    constants = f"SEED, LATEST, FUNCTIONS, DIES = {seed}, {LATEST_SECONDS}, {functions}, {dies}\n"
    return f"    {constants}{JOB}"


class Lab:
    """Fleets on one server, and the results of one machine that recorded the job."""

    def __init__(self, server: Server, root: Path) -> None:
        self._server = server
        self._root = root
        self._numbers = count()
        write_shims(root / "bin")
        self.recorded = self.fleet()
        recorder = self.recorded.recorder()
        recorder.run(job(functions=3))
        self.behind = self.recorded.copy_of(recorder, "cache/tier")
        recorder.run(job())
        self.ahead = self.recorded.copy_of(recorder, "cache/tier")

    def fleet(self) -> Fleet:
        """Return a fleet whose bucket is empty."""
        number = next(self._numbers)
        folder = self._root / f"fleet-{number}"
        url = f"s3://{BUCKET}/fleet-{number}"
        return Fleet(self._server, url, folder, self._root / "bin", self._root / "tmp")

    def start(self, seed: int, pin: str, dies: bool = False) -> list[tuple[bool, ...]]:
        """Start ranks on one machine while what was recorded arrives; return what each of them found."""
        fleet = self.fleet()
        machine = fleet.fresh()
        launcher = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
        launcher += ["--nproc-per-node", str(RANKS)]
        # Its own results would appear, too; those of the other machine are enough.
        settings = {"S3CACHE_PIN": pin, "S3CACHE_MODE": "read-only"}
        # A store of its own for each attempt: gloo fails on what the last one left in a shared store.
        settings["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with ThreadPoolExecutor() as pool:
            running = pool.submit(machine.start, job(seed, dies=dies), launcher=launcher, **settings)
            while not running.done() and not (machine.folder / "compiles-0-0").exists():
                time.sleep(0.05)
            fleet.receive(self.recorded, ARRIVAL_SECONDS)
            return _found(running.result())

    def start_two(self, pin: str) -> list[tuple[bool, ...]]:
        """Start two machines, of which one has less than the other and no bucket to fetch it from."""
        (port,) = free_ports(1)
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(RANKS // 2)]
        launcher += ["--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank"]
        machines = [
            (self.recorded.copy_of(self.ahead, "cache/tier"), {}),
            (self.recorded.copy_of(self.behind, "cache/tier"), {"AWS_ENDPOINT_URL_S3": REFUSING}),
        ]
        settings = {"S3CACHE_PIN": pin, "S3CACHE_MODE": "read-only"}
        with ThreadPoolExecutor() as pool:
            running = [
                pool.submit(machine.start, job(), launcher=[*launcher, str(node)], **settings, **own)
                for node, (machine, own) in enumerate(machines)
            ]
            return [found for each in running for found in _found(each.result())]


def check(lab: Lab, rounds: int) -> list[Number]:
    """Start ranks so many times with a pin and without; return how often they differed."""

    def differing(pin: str) -> int:
        return sum(_differ(lab.start(seed, pin)) for seed in range(rounds))

    restarted = lab.start(0, "1", dies=True)
    apart, together = lab.start_two("0"), lab.start_two("1")
    return [
        Number("starts in which ranks differ, no pin", 1, differing("0"), f" of {rounds}", is_floor=True),
        Number("the same, S3CACHE_PIN=1", 0, differing("1"), f" of {rounds}"),
        Number("the same, a rank dies and all are started again", 0, _differ(restarted)),
        Number("two machines differ, no pin", 1, _differ(apart), is_floor=True),
        Number("the same, S3CACHE_PIN=1", 0, _differ(together)),
        Number("of 3 functions that both machines have, found by all", 3, sum(together[0]), is_floor=True),
    ]


def _differ(found: list[tuple[bool, ...]]) -> int:
    if len(found) != RANKS:
        raise RuntimeError(f"{len(found)} of {RANKS} ranks came to their end")
    return int(len(set(found)) > 1)


def _found(start: Start) -> list[tuple[bool, ...]]:
    return [tuple(rank["found"]) for rank in start.ranks]


@click.command()
@click.option(
    "--rounds", default=5, show_default=True, help="Starts of four ranks, with a pin and without."
)
def main(rounds: int) -> None:
    """Check that the ranks of a pinned job find the same."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, seaweedfs() as server:
        server.make_bucket(BUCKET)
        numbers = check(Lab(server, Path(folder)), rounds)
    Console().print(table(numbers))
    sys.exit(not all(number.is_met for number in numbers))


if __name__ == "__main__":
    main()
