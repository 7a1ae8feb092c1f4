"""What the tests of PyTorch's adapters run against: buckets, each shared by fresh machines."""

import os
from collections.abc import Callable
from itertools import count

import pytest
import torch

from benchmarks.compilers import write_shims
from tests.conftest import BUCKET
from tests.integration.jobs import TRAINING
from tests.integration.starts import Fleet, Machine, Start
from tests.servers import Server

NewFleet = Callable[[], Fleet]


_GPUS = {"gpu": 1, "two_gpus": 2}


def pytest_runtest_setup(item: pytest.Item) -> None:
    here = torch.cuda.device_count()
    for marker, needed in _GPUS.items():
        if item.get_closest_marker(marker) and here < needed:
            pytest.skip(f"{marker}: needs {needed}, and torch sees {here}")


@pytest.fixture(scope="session")
def new_fleet(seaweedfs_server: Server, tmp_path_factory: pytest.TempPathFactory) -> NewFleet:
    """Make fleets on one server; their recorders share one TMPDIR, in all of pytest's workers."""
    numbers = count()
    shims, ours = tmp_path_factory.mktemp("shims") / "bin", tmp_path_factory.getbasetemp()
    tmp = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "recorders"
    write_shims(shims)

    def new() -> Fleet:
        url = f"s3://{BUCKET}/fleet-{next(numbers)}"
        folder = tmp_path_factory.mktemp("fleet")
        return Fleet(seaweedfs_server, url, folder, shims, tmp, is_unhurried=True)

    return new


@pytest.fixture(scope="session")
def fleet(new_fleet: NewFleet) -> Fleet:
    """A fleet for jobs that no other test has."""
    return new_fleet()


@pytest.fixture(scope="session")
def recorder(fleet: Fleet) -> Machine:
    """The first machine of the fleet: the one that recorded TRAINING."""
    return fleet.recorder()


@pytest.fixture(scope="session")
def recorded(recorder: Machine) -> Start:
    """The start that recorded TRAINING."""
    return recorder.start(TRAINING)


@pytest.fixture(scope="session")
def reader(fleet: Fleet) -> Machine:
    """A machine that was fresh when it started TRAINING."""
    return fleet.fresh()


@pytest.fixture(scope="session")
def read(reader: Machine, recorded: Start) -> Start:
    """The start of TRAINING on a fresh machine."""
    return reader.start(TRAINING)
