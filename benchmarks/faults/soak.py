"""Gets and puts without end, with eviction at the limit: python -m benchmarks.faults.soak

The processes of one job look up and put results of so many keys, more than the disk tier may hold.
From the second quarter on, when every key was met, nothing may grow any more, in the job's processes or in
the agent: what is looked at is the median of the second quarter and that of the last.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.bars import Number
from benchmarks.faults.verdict import conclude
from tests.processes.machines import Bucket, Machine, children
from tests.servers import Server, seaweedfs

BUCKET = "soak"
PROCESSES = 8
KEYS = 5_000
BYTES = 8_000
LIMIT = 20 << 20
"""Half of what all keys need."""
WAITING = 500
"""So many results may wait to be stored: a quarter of the limit has room for more."""
GROWTH = 0.05
"""Of memory, as a share: what is left to the allocator's mood."""
SAMPLE_SECONDS = 0.1
WORK = """
import itertools, pathlib
def done_by_all():
    return sum(int((path.read_text().split() or ["0"])[-1]) for path in pathlib.Path().glob("done-*"))
spool = cache.settings.spool_directory
randomly = random.Random(int(sys.argv[1]))
done = open(f"done-{{sys.argv[1]}}", "w", buffering=1)
for number in itertools.count():
    while spool.exists() and len(os.listdir(spool)) > {waiting}:
        time.sleep(0.05)
    key = randomly.randrange({keys})
    if number % 2:
        # Compilers do not make the same bytes twice.
        cache.put("fx-graph", f"key-{{key}}", {{"graph": b"%d " % key + randomly.randbytes({bytes})}})
    else:
        entry = cache.get("fx-graph", f"key-{{key}}")
        assert entry is None or entry.members["graph"].startswith(b"%d " % key)
    if number % 50 == 0:
        done.write(f"{{number}}\\n")
        if done_by_all() >= {operations}:
            break
"""
JOB = """
import subprocess
workers = [subprocess.Popen([sys.executable, "work.py", str(n)]) for n in range({processes})]
sys.exit(max(worker.wait() for worker in workers))
"""


@dataclass(frozen=True)
class Sample:
    """What all processes of a role had at one moment."""

    done: int
    memory: int
    files: int
    threads: int


def check(server: Server, root: Path, operations: int, *, is_unhurried: bool = False) -> list[Number]:
    """Let PROCESSES processes do so many gets and puts in all."""
    bucket = Bucket(server, BUCKET, "soak")
    settings = bucket.settings | {"S3CACHE_DISK_LIMIT": str(LIMIT)}
    machine = Machine(root / "machine", settings, is_unhurried=is_unhurried)
    work = WORK.format(operations=operations, keys=KEYS, bytes=BYTES, waiting=WAITING)
    machine.script(work, "work.py")
    with ExitStack() as at_the_end:
        at_the_end.callback(machine.switch_off)
        job = machine.start(JOB.format(processes=PROCESSES))
        samples: dict[str, list[Sample]] = defaultdict(list)
        leftovers: list[Sample] = []
        held = 0
        while job.poll() is None:
            done = _done(machine)
            for role, pids in (("job", children(job.pid)), ("agent", machine.agents())):
                if role == "agent" or len(pids) == PROCESSES:
                    with suppress(OSError, ValueError):
                        samples[role].append(_sample(done, pids))
            leftovers.append(Sample(done, 0, _unfinished(machine), 0))
            held = max(held, _held(machine))
            time.sleep(SAMPLE_SECONDS)
        stdout, stderr = job.communicate()
        assert (job.returncode, stdout) == (0, ""), stderr
        machine.wait_until_idle(300)
    numbers = [Number("most bytes in the disk tier ÷ its limit", 1.0, held / LIMIT)]
    for role, of_role in samples.items():
        mebibytes = _quarters(of_role, operations, lambda sample: sample.memory / 2**20)
        files = _quarters(of_role, operations, lambda sample: sample.files)
        threads = _quarters(of_role, operations, lambda sample: sample.threads)
        numbers += [
            _growth(f"memory of the {role}", mebibytes, GROWTH * mebibytes[0], " MiB"),
            _growth(f"file handles of the {role}", files, 0),
            _growth(f"threads of the {role}", threads, 0),
        ]
    unfinished = _quarters(leftovers, operations, lambda sample: sample.files)
    numbers.append(_growth("unfinished files", unfinished, 0))
    numbers.append(Number("unfinished files that are left at the end", 0, _unfinished(machine)))
    return numbers


def _growth(what: str, quarters: tuple[float, float], bar: float, unit: str = "") -> Number:
    second, last = quarters
    note = f"{second:.4g}, then {last:.4g}"
    return Number(f"{what}, from the second quarter to the last", bar, last - second, unit, note)


def _quarters(
    samples: list[Sample], operations: int, measure: Callable[[Sample], float]
) -> tuple[float, float]:
    second = [measure(sample) for sample in samples if operations / 4 <= sample.done < operations / 2]
    last = [measure(sample) for sample in samples if sample.done >= operations * 3 / 4]
    return statistics.median(second), statistics.median(last)


def _done(machine: Machine) -> int:
    """Return how many gets and puts are done."""
    done = 0
    for path in machine.folder.glob("done-*"):
        done += int((path.read_text().split() or ["0"])[-1])
    return done


def _sample(done: int, pids: list[int]) -> Sample:
    memory = files = threads = 0
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        memory += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files += len(list((folder / "fd").iterdir()))
        threads += len(list((folder / "task").iterdir()))
    return Sample(done, memory, files, threads)


def _unfinished(machine: Machine) -> int:
    """Return how many files are being written, or were and are left over."""
    return len([*machine.cache.glob("tier/*/incoming/*"), *machine.cache.glob("spool/*/*.incoming")])


def _held(machine: Machine) -> int:
    held = 0
    for path in machine.held():
        with suppress(OSError):
            held += path.stat().st_size
    return held


@click.command()
@click.option("--operations", default=100_000, show_default=True)
def main(operations: int) -> None:
    """Get and put, then print a table of bars and numbers."""
    with TemporaryDirectory(prefix="s3cache-soak-") as folder, seaweedfs() as server:
        server.make_bucket(BUCKET)
        conclude(check(server, Path(folder), operations))


if __name__ == "__main__":
    main()
