"""Each fault alone, at three rates, under a real torch.compile job: python -m benchmarks.faults.compiles

The job is a small training; it is started on a machine that has recorded nothing and on one that could
read what another has recorded. It must end well, with the losses that it has without a cache.
"""

import itertools
import os
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.bars import Number
from benchmarks.faults.verdict import conclude
from tests.faults import KINDS, Front, faulty
from tests.integration.jobs import TRAINING
from tests.integration.starts import Machine, Start
from tests.servers import Server, seaweedfs

BUCKET = "faults"
RATES = (0.01, 0.1, 1.0)
EXTRA_SECONDS = 5.0
BASELINES = 5


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
        return Machine(folder, environment, self._root / "tmp").start(TRAINING)

    def meet(self, kind: str, rate: float, prefix: str) -> tuple[Start, int, int]:
        """Start the job while something goes wrong; return also how many requests there were, and faults."""
        before = self._front.requests()
        self._front.inject(kind, rate, seed=sum(map(ord, prefix)))
        try:
            start = self.start(prefix)
        finally:
            self._front.heal()
        after = self._front.requests() - before
        return start, after.total() - after["faults"], after["faults"]


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
            trial.start(None)
            plain = [trial.start(None) for _ in range(BASELINES)]
            without = statistics.median(start.seconds for start in plain)
            expected = plain[0].facts["losses"]
            trial.start("recorded")
            for kind, rate in itertools.product(kinds.split(","), map(float, rates.split(","))):
                for prefix in (f"{kind}-{rate}", "recorded"):
                    start, requests, faults = trial.meet(kind, rate, prefix)
                    assert start.facts["losses"] == expected, (kind, rate, start.facts)
                    how = "fresh" if prefix == "recorded" else "recording"
                    name = f"{kind} at {rate:.0%}, {how}"
                    counted = ", ".join(f"{n} {word}" for word, n in start.cache["faults"].items())
                    note = f"{faults} of {requests} requests; counted: {counted or 'none'}"
                    extra = start.seconds - without
                    numbers.append(Number(f"{name}: extra time", EXTRA_SECONDS, extra, " s", note))
                    print(f"{name}: {extra:.1f} s, {note}", file=sys.stderr, flush=True)
    spread = max(start.seconds for start in plain) - min(start.seconds for start in plain)
    print(f"without a cache: {without:.1f} s, median of {BASELINES} that are {spread:.1f} s apart")
    conclude(numbers)


if __name__ == "__main__":
    main()
