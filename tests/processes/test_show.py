"""`s3cache show`: what the bucket has under a key, and one member of it byte for byte."""

import subprocess

import pytest

from s3cache import manifest
from s3cache.keyring import NO_KEYS
from tests.processes.conftest import NewBucket, NewMachine
from tests.processes.machines import Bucket, Machine, content

RECORD = """
import s3cache

with s3cache.open_sync(os.environ["URL"]) as bucket:
    kernel = {"cubin": content("cubin", 300_000), "ptx": content("ptx", 20_000)}
    bucket.put("triton", "kernel", kernel, on_demand=["ptx"])
    bucket.put("cpp-library", "library", {"of-any.so": b"any"})
    for number, flags in enumerate(({"cpu_flags": "none-such"}, {})):
        requires = {"glibc": "2.0", **flags}
        bucket.put("cpp-library", "library", {"of.so": b"%d" % number}, requires=requires)
    bucket.put("cpp-library", "mended", {})
    bucket.put("of-two", "key", {"member": content("large", 100_000)}, variant="large")
    bucket.put("of-two", "key", {"member": b"small"}, variant="small")
"""


@pytest.fixture(scope="module")
def recorded(new_bucket: NewBucket, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """A place with kernels and libraries; the first slot of one is damaged."""
    place = new_bucket()
    place.write("manifests/cpp-library/mended/0", b"damage")
    folder = tmp_path_factory.mktemp("machines") / "recording"
    machine = Machine(folder, place.settings, is_unhurried=True)
    assert machine.run(RECORD, URL=place.url, S3CACHE_URL=None).status == 0
    return place


@pytest.fixture
def reader(new_machine: NewMachine, recorded: Bucket) -> Machine:
    return new_machine(knows=recorded)


def test_members_are_listed_with_their_sizes_and_which_come_on_demand(reader: Machine) -> None:
    shown = reader.s3cache("show", "triton", "kernel")
    assert (shown.status, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        "slot 0",
        "  cubin         300.0 kB",
        "  ptx            20.0 kB  on demand",
    ]


def test_what_a_slot_requires_and_whether_this_machine_has_it_is_said(reader: Machine) -> None:
    shown = reader.s3cache("show", "cpp-library", "library")
    assert (shown.status, shown.stderr) == (0, "")
    assert [line for line in shown.stdout.splitlines() if line.startswith("slot")] == [
        "slot 0",
        "slot 1, for glibc 2.0, cpu_flags none-such, which this machine does not have",
        "slot 2, for glibc 2.0",
    ]


def test_a_member_is_written_byte_for_byte_and_nothing_else(reader: Machine) -> None:
    shown = subprocess.run(
        [*reader.command_line(), "show", "triton", "kernel", "--member", "ptx"],
        env=reader.environment(),
        capture_output=True,
        check=True,
    )
    assert shown.stdout == content("ptx", 20_000)
    assert shown.stderr == b""


def test_a_member_comes_from_the_first_slot_that_has_it(reader: Machine) -> None:
    shown = reader.s3cache("show", "cpp-library", "library", "--member", "of.so")
    assert shown[:3] == (0, "0", "")


def test_a_slot_that_is_named_is_shown_alone(reader: Machine) -> None:
    shown = reader.s3cache("show", "cpp-library", "library", "--slot", "2")
    assert shown.stdout.splitlines() == ["slot 2, for glibc 2.0", "  of.so              1 B"]
    shown = reader.s3cache("show", "cpp-library", "library", "--slot", "2", "--member", "of.so")
    assert shown[:3] == (0, "1", "")


def test_a_slot_that_is_damaged_is_left_out(reader: Machine) -> None:
    assert reader.s3cache("show", "cpp-library", "mended")[:3] == (0, "slot 1\n", "")


def test_a_member_that_is_gone_hides_none_of_another_slot(reader: Machine, recorded: Bucket) -> None:
    first = manifest.decode(recorded.read("manifests/of-two/key/0"), NO_KEYS)
    recorded.delete(f"packs/{first.frames[0].pack.hex()}")
    shown = reader.s3cache("show", "of-two", "key", "--member", "member")
    assert shown[:3] == (0, "small", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["triton", "another"], "has nothing under triton another"),
        (["triton", "kernel", "--slot", "1"], "has nothing under triton kernel slot 1"),
        (["triton", "kernel", "--member", "ttir"], "triton kernel has no member ttir"),
        (["../triton", "kernel"], "a namespace is letters, digits, '.', '_' and '-': '../triton'"),
    ],
)
def test_what_is_not_there_is_an_error(reader: Machine, arguments: list[str], says: str) -> None:
    shown = reader.s3cache("show", *arguments)
    assert (shown.status, shown.stdout) == (1, "")
    assert shown.stderr.startswith("Error: ")
    assert shown.stderr.endswith(f"{says}\n")


def test_the_bucket_that_is_named_is_asked(reader: Machine, recorded: Bucket) -> None:
    assert reader.s3cache("show", "triton", "kernel", S3CACHE_URL=None).status == 2
    shown = reader.s3cache("show", "--url", recorded.url, "triton", "kernel", S3CACHE_URL="s3://another")
    assert shown.status == 0
