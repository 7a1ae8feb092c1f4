"""A real server, prefixes of its bucket, and fresh machines."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.processes.machines import Bucket, Machine
from tests.servers import Server, seaweedfs

BUCKET = "processes"
READER = ("s3cache-reader", "s3cache-reader-secret")
PYTHONS = dict.fromkeys(
    [sys.executable, *filter(None, os.environ.get("S3CACHE_TEST_PYTHONS", "").split(":"))]
)

_numbers = count(1)

NewBucket = Callable[[], Bucket]
NewMachine = Callable[..., Machine]
RecordedBy = Callable[[str], Bucket]


@pytest.fixture(autouse=True, scope="session")
def _signals_as_at_a_terminal() -> None:
    """Who starts the tests in the background ignores some of these, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real S3 server with a bucket; READER may only read there."""
    with seaweedfs(read_only=READER) as running:
        running.make_bucket(BUCKET)
        yield running


@pytest.fixture(scope="session")
def new_bucket(server: Server) -> NewBucket:
    """Make places in the bucket that nobody else uses."""
    return lambda: Bucket(server, BUCKET, f"prefix-{next(_numbers)}")


@pytest.fixture(scope="session")
def recorded_by(new_bucket: NewBucket, tmp_path_factory: pytest.TempPathFactory) -> RecordedBy:
    """Let one machine run a job, and return the place that it has recorded into."""

    def record(job: str) -> Bucket:
        place = new_bucket()
        folder = tmp_path_factory.mktemp("machines") / "recording"
        machine = Machine(folder, place.settings, is_unhurried=True)
        assert machine.run(job)[:3] == (0, "", "")
        machine.wait_until_idle()
        assert machine.spooled() == [], machine.log()
        return place

    return record


@pytest.fixture
def bucket(new_bucket: NewBucket) -> Bucket:
    """A place in the bucket that no other test uses."""
    return new_bucket()


@pytest.fixture
def new_machine(tmp_path: Path, bucket: Bucket) -> Iterator[NewMachine]:
    """Make machines that know the bucket and have nothing yet; they are unhurried by default."""
    with ExitStack() as stack:

        def make(
            python: str = sys.executable, knows: Bucket = bucket, is_unhurried: bool = True
        ) -> Machine:
            folder = tmp_path / f"machine-{next(_numbers)}"
            machine = Machine(folder, knows.settings, python, is_unhurried)
            stack.callback(machine.switch_off)
            return machine

        yield make


@pytest.fixture
def machine(new_machine: NewMachine) -> Machine:
    """An unhurried machine that knows the bucket and has nothing yet."""
    return new_machine()


@pytest.fixture(params=PYTHONS, ids=lambda python: Path(python).parts[-3])
def any_machine(request: pytest.FixtureRequest, new_machine: NewMachine) -> Machine:
    """A machine with each of the interpreters that must work."""
    return new_machine(request.param)
