"""A bucket that does wrong while jobs run: they end well, are told once, and lose five seconds at most."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.bars import Number
from benchmarks.faults import killed, recovery, soak, torn, writers
from tests.faults import Front, faulty
from tests.processes.conftest import NewMachine, RecordedBy
from tests.processes.machines import Bucket, Machine, ended, least, wait_for
from tests.processes.stubs import counting
from tests.servers import Server

EXTRA_SECONDS = 5.0
RECORD = """
for number in range(6):
    cache.put("fx-graph", f"key-{number}", {"graph": content(number, 500 + number % 2 * 50_000)})
"""
READ = """
import glob
while not glob.glob(os.environ["S3CACHE_DIR"] + "/agents/*/socket"):
    time.sleep(0.01)
for number in range(6):
    entry = cache.get("fx-graph", f"key-{number}")
    assert entry and entry.members == {"graph": content(number, 500 + number % 2 * 50_000)}, number
say("right")
"""
JOB = """
for number in range(6):
    if cache:
        entry = cache.get("fx-graph", f"key-{number}")
        assert entry is None or entry.members == {"graph": content(number, 500 + number % 2 * 50_000)}
        cache.put("fx-graph", f"own-KIND-{number}", {"graph": content(number, 500 + number % 2 * 50_000)})
sys.exit(7)
"""


@pytest.fixture(scope="module")
def bucket(recorded_by: RecordedBy) -> Bucket:
    """A place in the bucket that one machine has recorded into."""
    return recorded_by(RECORD)


@pytest.fixture(scope="module")
def running_front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with faulty(server.endpoint, tmp_path_factory.mktemp("front")) as running:
        yield running


@pytest.fixture
def front(running_front: Front) -> Iterator[Front]:
    """A front before the server, at which nothing goes wrong yet."""
    yield running_front
    running_front.heal()


@pytest.fixture
def machine(new_machine: NewMachine, front: Front) -> Machine:
    """A machine that has nothing yet, and the bucket behind the front."""
    machine = new_machine()
    machine.settings = machine.settings | {"AWS_ENDPOINT_URL_S3": front.endpoint}
    return machine


@pytest.fixture(scope="module")
def seconds_without_cache(tmp_path_factory: pytest.TempPathFactory) -> float:
    machine = Machine(tmp_path_factory.mktemp("machine"), {})
    return min(machine.run(JOB).seconds for _ in range(3))


def test_a_job_whose_first_requests_are_never_answered_has_all_that_is_there(
    new_machine: NewMachine, server: Server
) -> None:
    def seconds() -> float:
        with counting(server.endpoint, stalled=2) as proxy:
            job = new_machine(is_unhurried=False).run(READ, AWS_ENDPOINT_URL_S3=proxy.endpoint)
        assert job[:3] == (0, "right\n", "")
        return job.seconds

    assert least(seconds, EXTRA_SECONDS) <= EXTRA_SECONDS


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("delay", ""),
        ("stall", "timeout"),
        ("trickle", "timeout"),
        ("truncate", "truncated"),
        ("flip", "corrupt"),
        ("foreign", "corrupt"),
        ("409", "conflict"),
        ("503", "busy"),
        ("lost", "unreachable"),
    ],
)
def test_whatever_goes_wrong_the_job_ends_well_and_it_is_counted(
    new_machine: NewMachine, front: Front, kind: str, counted: str, seconds_without_cache: float
) -> None:
    front.inject(kind)

    def extra() -> float:
        machine = new_machine(is_unhurried=False)
        report = machine.folder / "report.json"
        variables = {"AWS_ENDPOINT_URL_S3": front.endpoint, "S3CACHE_REPORT": str(report)}
        job = machine.run(JOB.replace("KIND", kind), **variables)
        assert (job.status, job.stdout) == (7, "")
        assert len(job.stderr.splitlines()) <= 1, job.stderr
        machine.wait_until_idle()
        assert "Traceback" not in machine.log()
        faults = json.loads(report.read_text())["faults"]
        assert counted in faults if counted else not faults, machine.log()
        return job.seconds - seconds_without_cache

    assert least(extra, EXTRA_SECONDS) <= EXTRA_SECONDS


def test_faults_are_said_at_the_end(machine: Machine, front: Front) -> None:
    front.inject("500")
    job = machine.s3cache("run", "--", machine.python, str(machine.script(JOB)))
    assert job.status == 7
    assert re.search(r"; faults: \d+ server$", job.stderr.splitlines()[-1]), job.stderr


@pytest.mark.parametrize(
    ("kind", "only", "advice"),
    [
        ("403", ["PUT", "DELETE"], "it takes s3:PutObject, or set S3CACHE_MODE=read-only"),
        ("403", ["LIST"], "it takes s3:ListBucket"),
        ("403", ["GET"], "it takes s3:GetObject"),
        ("expired", [], "renew the credentials"),
        ("skewed", [], "set the clock"),
    ],
    ids=["read-only", "no LIST", "no GET", "expired", "skewed"],
)
def test_what_is_not_allowed_is_said_once_with_the_remedy_and_the_disk_fills(
    machine: Machine, front: Front, kind: str, only: list[str], advice: str
) -> None:
    if only == ["LIST"]:
        front.inject(kind, only=only)
    key = f"own-{kind}-{'-'.join(only)}"
    job = machine.start(
        f"""
        cache.get("fx-graph", "key-1")
        say("middle")
        sys.stdin.readline()
        cache.put("fx-graph", "{key}", {{"graph": content("own", 50_000)}})
        cache.get("fx-graph", "absent")
        cache.flush(10)
        """
    )
    assert job.stdout
    assert job.stdout.readline() == "middle\n"
    front.inject(kind, only=only)
    end = ended(job, "\n")
    assert end.status == 0
    (warning,) = end.stderr.splitlines()
    assert advice in warning
    machine.wait_until_idle()
    # Though the bucket takes and gives nothing still, the next start on this machine finds it.
    again = machine.run(f'say(cache.get("fx-graph", "{key}") is not None)')
    assert again.stdout == "True\n"


def test_results_outlive_credentials_that_expire_and_are_stored_once_they_are_renewed(
    machine: Machine, front: Front, bucket: Bucket
) -> None:
    job = machine.start(
        """
        cache.put("fx-graph", "first", {"graph": b"first"})
        sys.stdin.readline()
        cache.put("fx-graph", "second", {"graph": b"second"})
        cache.flush(5)
        say("refused")
        sys.stdin.readline()
        for number in range(20):
            cache.put("fx-graph", f"late-{number}", {"graph": b"late"})
            time.sleep(0.2)
        """
    )
    assert job.stdin
    assert job.stdout
    wait_for(lambda: "first" in bucket.keys("fx-graph"), "the first result to be stored")
    front.inject("expired")
    job.stdin.write("\n")
    job.stdin.flush()
    assert job.stdout.readline() == "refused\n"
    front.heal()
    job.communicate("\n", timeout=60)
    machine.wait_until_idle()
    assert {"first", "second", "late-0", "late-19"} <= set(bucket.keys("fx-graph"))


# The rows of benchmarks/faults, small.


def test_a_bucket_that_is_dead_at_first_is_used_again(server: Server, tmp_path: Path) -> None:
    _make_bucket(server, recovery.BUCKET)
    _are_met(recovery.check(server, tmp_path, "reset", dead_seconds=3.0, alive_seconds=15.0))


def test_kill_9_at_random_moments_leaves_nothing_torn(server: Server, tmp_path: Path) -> None:
    _make_bucket(server, killed.BUCKET)
    _are_met(killed.check(server, tmp_path, kills=4))


def test_many_writers_lose_nothing(server: Server, tmp_path: Path) -> None:
    _make_bucket(server, writers.BUCKET)
    _are_met(writers.check(server, tmp_path, processes=2, writers=8, keys=40))


def test_files_that_are_cut_are_found(tmp_path: Path) -> None:
    _are_met(torn.check(tmp_path, times=100))


def test_nothing_grows_while_results_come_and_go(server: Server, tmp_path: Path) -> None:
    _make_bucket(server, soak.BUCKET)
    numbers = soak.check(server, tmp_path, operations=2_000, is_unhurried=True)
    # What a process keeps of what it read, and the agent's connections, have not reached their bounds yet;
    # and few looks say little of files that come and go.
    early = ("memory of", "file handles of the agent", "unfinished files, from")
    _are_met([number for number in numbers if not number.what.startswith(early)])


def _make_bucket(server: Server, name: str) -> None:
    server.make_bucket(name)


def _are_met(numbers: list[Number]) -> None:
    assert [number for number in numbers if not number.is_met] == []
