"""What the NVIDIA driver compiles lies in its folder before it looks; what it adds there is kept."""

import pytest

from tests.integration.conftest import NewFleet
from tests.integration.starts import Fleet, Machine, Start

NAMES = [f"{number}2daf144f9da595{number}" for number in range(3)]
DRIVER, ANOTHER = "580.159.04", "590.44.01"
# Stands for a GPU: a library of the driver's name, what torch.cuda does when it is initialized, and
# what the driver does when it lacks a kernel.
LAUNCH = f"""
import ctypes, multiprocessing, shutil, struct
from contextlib import suppress
from pathlib import Path

import torch

def library():
    path = Path(os.environ["DRIVER"]).absolute()
    shutil.copy(Path(torch.__file__).parent / "lib/libtorch_global_deps.so", path)
    return path

def kernel(name):
    return struct.pack("<IQQQ", 65, 3, len(name), 0) + b"key" + name.encode()

def launch():
    if "DRIVER" in os.environ:
        ctypes.CDLL(library())
    for call, _ in torch.cuda._queued_calls:
        if call.__module__.startswith("s3cache"):
            call()
    home = os.environ["HOME"]
    folder = Path(os.environ.get("CUDA_CACHE_PATH") or home + "/.nv/ComputeCache")
    found, right = [], True
    for number, name in enumerate({NAMES}):
        path = folder / name[0] / name[1] / name[2:]
        if path.exists():
            found.append(name)
            right = right and path.read_bytes() == kernel(name)
        elif home and not os.environ.get("CUDA_CACHE_DISABLE"):
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                if name == os.environ.get("LINK"):
                    path.symlink_to("/dev/zero")
                else:
                    path.write_bytes(kernel(name)[: int(os.environ.get("WRITTEN", 1000)) + 20 * number])
                    if "LAID" in os.environ:
                        os.utime(path, (0, 0))
    report(found=found, right=right)
"""
PROCESS = LAUNCH + "\nlaunch()\n"
CHILD = LAUNCH + "\nmultiprocessing.get_context('fork').Process(target=launch).start()\n"
MANY = [f"{number:016x}" for number in range(130)]
EXTENDED = PROCESS.replace(str(NAMES), str([*NAMES, "ffffffffffffffff"]))


def start(machine: Machine, script: str = PROCESS, driver: str = DRIVER, **variables: str) -> Start:
    return machine.run(script, DRIVER=f"libcuda.so.{driver}", **variables)


@pytest.fixture(scope="module")
def recorded(new_fleet: NewFleet) -> Fleet:
    """A fleet of which one machine's driver has compiled."""
    fleet = new_fleet()
    first = start(fleet.recorder())
    assert (first.facts["found"], first.count("puts")) == ([], len(NAMES))
    return fleet


@pytest.fixture(scope="module")
def reader(recorded: Fleet) -> Machine:
    """A machine that was fresh when it started what was recorded."""
    return recorded.fresh()


@pytest.fixture(scope="module")
def read(reader: Machine) -> Start:
    """A start on a fresh machine."""
    return start(reader)


def test_a_fresh_machine_has_them_before_it_launches(read: Start) -> None:
    assert (read.facts["found"], read.facts["right"]) == (NAMES, True)
    assert (read.count("bucket_hits"), read.count("misses"), read.count("puts")) == (len(NAMES), 0, 0)


@pytest.mark.usefixtures("read")
def test_only_what_was_added_is_stored(reader: Machine) -> None:
    more = start(reader, EXTENDED)
    assert (more.facts["found"], more.count("misses"), more.count("puts")) == (NAMES, 0, 1)


def test_another_driver_compiles_its_own(recorded: Fleet) -> None:
    other = start(recorded.fresh(), driver=ANOTHER)
    assert (other.facts["found"], other.count("misses"), other.count("puts")) == ([], 0, len(NAMES))


def test_a_folder_that_the_user_chose_is_used(recorded: Fleet) -> None:
    machine = recorded.fresh()
    chosen = start(machine, CUDA_CACHE_PATH=str(machine.folder / "chosen"))
    assert chosen.facts["found"] == NAMES
    assert not (machine.folder / "home/.nv").exists()


def test_what_a_child_of_multiprocessing_compiled_is_stored(new_fleet: NewFleet) -> None:
    assert start(new_fleet().recorder(), CHILD).count("puts") == len(NAMES)


def test_of_what_piles_up_the_newest_are_used(new_fleet: NewFleet) -> None:
    """Where each start has another working directory, each adds some."""
    fleet = new_fleet()
    first = start(fleet.fresh(), PROCESS.replace(str(NAMES), str(MANY)))
    second = start(fleet.fresh())
    assert (first.count("puts"), second.count("puts")) == (130, len(NAMES))
    assert second.count("bucket_hits") == 128
    assert start(fleet.fresh()).facts["found"] == NAMES


def test_what_is_not_written_whole_is_not_stored(new_fleet: NewFleet) -> None:
    assert start(new_fleet().recorder(), WRITTEN="0").count("puts") == 0


def test_what_another_job_laid_there_meanwhile_is_not_stored(new_fleet: NewFleet) -> None:
    """It may have come from a bucket that this job does not trust, and would be signed by its key."""
    assert start(new_fleet().recorder(), LAID="1").count("puts") == 0


@pytest.mark.usefixtures("read")
def test_what_is_laid_there_can_be_told_from_what_the_driver_wrote(reader: Machine) -> None:
    laid = [reader.folder / "home/.nv/ComputeCache" / name[0] / name[1] / name[2:] for name in NAMES]
    assert [path.stat().st_mtime_ns for path in laid] == [0] * len(NAMES)


STORE = f"""
import torch
from s3cache import client
put = client.current().put
good = struct.pack("<IQQQ", 65, 3, len({NAMES[2]!r}), 0) + b"key" + {NAMES[2]!r}.encode()
for key, members in {{
    "{DRIVER}-{NAMES[0]}": {{"another": good}},
    "{DRIVER}-{NAMES[1]}": {{"kernel": b"short"}},
    "{DRIVER}-../../{NAMES[2][6:]}": {{"kernel": good}},
    "{DRIVER}-{NAMES[2]}": {{"kernel": good}},
}}.items():
    put("driver-kernel", key, members)
report()
"""


def test_what_is_no_kernel_is_passed_over(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    assert fleet.recorder().run("import struct" + STORE).count("puts") == 4
    found = start(fleet.fresh()).facts
    assert (found["found"], found["right"]) == ([NAMES[2]], True)


def test_a_link_is_not_stored_and_what_lies_beside_it_is(new_fleet: NewFleet) -> None:
    assert start(new_fleet().recorder(), LINK=NAMES[1]).count("puts") == 2


@pytest.mark.parametrize(
    "variables",
    [
        {"CUDA_CACHE_DISABLE": "1"},
        {"S3CACHE_EXCLUDE": "driver-kernel"},
        {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        {"HOME": ""},
    ],
)
def test_nothing_is_read_or_written_where_there_is_to_be_no_cache(
    recorded: Fleet, variables: dict[str, str]
) -> None:
    off = start(recorded.fresh(), **variables)
    assert (off.facts["found"], off.count("bucket_hits"), off.count("puts")) == ([], 0, 0)


def test_without_a_driver_that_names_its_version_nothing_is_read_or_written(recorded: Fleet) -> None:
    found = start(recorded.fresh(), driver="1.1")
    assert (found.facts["found"], found.count("bucket_hits"), found.count("puts")) == ([], 0, 0)


def test_a_folder_that_cannot_be_written_is_left_alone(recorded: Fleet) -> None:
    job = start(recorded.fresh(), CUDA_CACHE_PATH="/dev/null/folder")
    assert (job.facts["found"], job.count("puts")) == ([], 0)


ATTENTION = """
import torch

# The path of this folder is in what cuDNN generates.
folder = os.getcwd()
os.chdir("/")
query = torch.randn(2, 16, 1024, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
attention = torch.nn.functional.scaled_dot_product_attention
attention(query, query, query, is_causal=True).sum().backward()
torch.cuda.synchronize()
os.chdir(folder)
report()
"""


@pytest.mark.gpu
def test_what_a_real_driver_compiled_it_does_not_compile_again(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    recorded, fresh = fleet.recorder().run(ATTENTION), fleet.fresh().run(ATTENTION)
    assert recorded.count("puts") > 0
    assert fresh.count("bucket_hits") == recorded.count("puts")
    assert fresh.count("puts") == fresh.count("misses") == 0
