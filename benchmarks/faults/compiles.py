"""Each fault alone, at three rates, under a real torch.compile job: python -m benchmarks.faults.compiles

The job is started on a machine that has recorded nothing and on one that could read what another has
recorded. It must end well, with the result that it has without a cache. At 100 % it is compared with a
start without a cache right before it, again when it took too long: what a fault costs comes every time,
what others do on the machine does not.
"""

import itertools
import math
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.bars import Number
from benchmarks.faults.verdict import conclude
from tests.faults import KINDS, Front, faulty
from tests.integration.starts import Machine, Start
from tests.servers import Server, seaweedfs

BUCKET = "faults"
RATES = (0.01, 0.1, 1.0)
EXTRA_SECONDS = 5.0
TIMES = 3
JOB = """
    import torch

    x = torch.linspace(-2, 2, 40, requires_grad=True)
    y = torch.compile(lambda x: (x ** 3).sin().sum())(x)
    y.backward()
    report(result=[value.hex() for value in (y.item(), *x.grad.tolist())])
"""


class Trial:
    """Machines with a bucket behind a front; all share one TMPDIR, and with that the precompiled header."""

    def __init__(self, root: Path, server: Server, front: Front) -> None:
        self._root = root
        self._server = server
        self._front = front
        self._numbers = itertools.count()

    def start(self, prefix: str | None) -> Start:
        """Start the job on a fresh machine, without a cache when there is no prefix."""
        folder = self._root / f"machine-{next(self._numbers)}"
        environment = {"PATH": os.environ["PATH"], **self._server.environment()}
        environment["AWS_ENDPOINT_URL_S3"] = self._front.endpoint
        if prefix is not None:
            environment["S3CACHE_URL"] = f"s3://{BUCKET}/{prefix}"
        return Machine(folder, environment, self._root / "tmp").start(JOB)

    def meet(self, kind: str, rate: float, prefix: str) -> tuple[Start, int, int]:
        """Start the job while something goes wrong; return also how many requests and faults there were."""
        before = self._front.requests()
        self._front.inject(kind, rate, seed=sum(map(ord, prefix)))
        try:
            start = self.start(prefix)
        finally:
            self._front.heal()
        after = self._front.requests() - before
        return start, after.total() - after["faults"], after["faults"]


def check(trial: Trial, kind: str, rate: float, how: str, expected: list[str]) -> Number:
    """Start the job until it took little enough, at most TIMES; the result must always be right."""
    extras: list[float] = []
    while not extras or (rate == 1 and min(extras) > EXTRA_SECONDS and len(extras) < TIMES):
        without = trial.start(None).seconds if rate == 1 else math.inf
        prefix = "recorded" if how == "fresh" else f"{kind}-{rate}-{len(extras)}"
        start, requests, faults = trial.meet(kind, rate, prefix)
        assert start.facts["result"] == expected, (kind, rate, start.facts)
        extras.append(start.seconds - without)
    counted = ", ".join(f"{count} {fault}" for fault, count in start.cache["faults"].items())
    waited = start.cache["seconds"].get("lookup", 0.0)
    note = f"{faults} of {requests} requests; counted: {counted or 'none'}; waited {waited:.1f} s"
    if rate < 1:
        return Number(f"{kind} at {rate:.0%}, {how}: waited", math.inf, waited, " s", note)
    return Number(f"{kind} at {rate:.0%}, {how}: extra time", EXTRA_SECONDS, min(extras), " s", note)


@click.command()
@click.option("--kinds", default=",".join(KINDS), show_default=True, help="What goes wrong.")
@click.option("--rates", default=",".join(map(str, RATES)), show_default=True, help="In which shares.")
def main(kinds: str, rates: str) -> None:
    """Start the job under each fault, then print a table of bars and numbers."""
    numbers: list[Number] = []
    with TemporaryDirectory(prefix="s3cache-faults-") as folder, seaweedfs() as server:
        server.make_bucket(BUCKET)
        with faulty(server.endpoint, Path(folder, "front")) as front:
            trial = Trial(Path(folder), server, front)
            # The first compiles the header, too.
            expected = [trial.start(None).facts["result"] for _ in range(2)][1]
            trial.start("recorded")
            for kind, rate in itertools.product(kinds.split(","), map(float, rates.split(","))):
                for how in ("recording", "fresh"):
                    number = check(trial, kind, rate, how, expected)
                    said = f"{number.what}: {number.measured:.1f} s; {number.note}"
                    print(said, file=sys.stderr, flush=True)
                    numbers.append(number)
    conclude(numbers)


if __name__ == "__main__":
    main()
