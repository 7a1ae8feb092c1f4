"""`s3cache kernels compile` on one machine, and what another one finds after `s3cache warm --kernels`."""

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import NamedTuple

import pytest

from s3cache import catalog, profile
from s3cache.catalog import Reference
from s3cache.keyring import NO_KEYS
from s3cache.machine import platform_tag
from s3cache.manifest import Manifest
from s3cache.names import profile_prefix
from s3cache.profile import Segment
from tests.processes.conftest import READER, NewBucket, NewMachine
from tests.processes.machines import Bucket, Ended, Machine
from tests.processes.stubs import REFUSING

pytest.importorskip("triton")

HEAD = """
import triton
import triton.language as tl
from s3cache.kernels import declare
"""
SCALE = (
    HEAD
    + """
@declare({"x": "*fp32", "size": "i32:16"}, {"block": 64}, num_warps=2)
@declare({"x": "*fp32", "size": "i32"}, {"block": 64}, num_warps=2)
@triton.jit
def scale(x, size, block: tl.constexpr):
    at = tl.arange(0, block)
    tl.store(x + at, tl.load(x + at, mask=at < size) * 2, mask=at < size)
"""
)
FILL = """
@declare({"x": "*fp32"})
@triton.autotune([triton.Config({"block": 64}), triton.Config({"block": 100}, num_warps=8)], [])
@triton.jit
def fill(x, block: tl.constexpr):
    tl.store(x + tl.arange(0, block), 1.0)
"""
ONE = SCALE.replace('@declare({"x": "*fp32", "size": "i32"}, {"block": 64}, num_warps=2)\n', "")
LAUNCHES = """
import torch, ours
from triton import knobs
from s3cache.kernels.target import Target, compiling_for

knobs.compilation.listener = lambda *, cache_hit, **_: say(cache_hit)
with compiling_for(Target("cuda", 90)):
    for size in (1024, 1000):
        ours.scale.warmup(torch.empty(64), size, block=64, num_warps=2, grid=(1,))
    ours.fill.fn.warmup(torch.empty(64), grid=(1,), **ours.fill.configs[0].all_kwargs())
"""


class Pushed(NamedTuple):
    """Where one machine has stored kernels that it compiled, and how that ended."""

    bucket: Bucket
    end: Ended


def compile_file(machine: Machine, text: str, *options: str, **variables: str | None) -> Ended:
    """Compile what a file declares."""
    path = machine.folder / "ours.py"
    path.write_text(text)
    return machine.s3cache("kernels", "compile", str(path), *options, **variables)


def note(bucket: Bucket, job: str, *references: Reference, **writer: str) -> None:
    """Let a machine have written to the profile of a job."""
    prefix = profile_prefix(job, platform_tag())
    made = catalog.build(references, NO_KEYS)
    data = profile.encode(Segment([], made, profile=prefix, writer=writer), NO_KEYS)
    bucket.write(profile.new_segment_name(prefix, data), data)


@pytest.fixture(scope="module")
def pushed(new_bucket: NewBucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    bucket = new_bucket()
    folder = tmp_path_factory.mktemp("machines") / "compiling"
    machine = Machine(folder, bucket.settings, is_unhurried=True)
    end = compile_file(machine, SCALE + FILL, "--target", "cuda:90", "--jobs", "2", "--push")
    yield Pushed(bucket, end)
    machine.switch_off()


def test_a_kernel_that_cannot_be_compiled_is_named_and_the_rest_is_stored(pushed: Pushed) -> None:
    assert pushed.end.status == 1
    assert "s3cache: 3 of 4 kernels are compiled" in pushed.end.stdout
    assert "fill(x: *fp32) for cuda:90, block: 100, num_warps: 8, " in pushed.end.stderr
    assert "arange's range must be a power of 2" in pushed.end.stderr
    assert len(pushed.bucket.keys("triton")) == 3
    assert len(pushed.bucket.names(profile_prefix("kernels", platform_tag()))) == 1


def test_a_machine_that_fetched_them_compiles_nothing(new_machine: NewMachine, pushed: Pushed) -> None:
    machine = new_machine(knows=pushed.bucket)
    warm = machine.s3cache("warm", "--kernels")
    assert (warm.status, warm.stderr) == (0, "")
    assert warm.stdout.startswith("s3cache: 3 entries of kernels are here, ")
    (machine.folder / "ours.py").write_text(SCALE + FILL)
    script = machine.script(LAUNCHES)
    job = machine.s3cache("run", "--report", "report.json", "--", machine.python, str(script))
    assert (job.status, job.stdout) == (0, "True\n" * 3)
    counts = json.loads((machine.folder / "report.json").read_text())["namespaces"]["triton"]
    assert (counts["bucket_hits"], counts["disk_hits"], counts["misses"]) == (0, 3, 0)


@pytest.mark.parametrize(
    "variables",
    [
        {"TRITON_CACHE_MANAGER": "triton.runtime.cache:FileCacheManager"},
        {"S3CACHE_PIN": "1"},
        {"S3CACHE_DEADLINE": "0"},
    ],
)
def test_what_the_user_chose_for_jobs_does_not_keep_them_from_the_bucket(
    machine: Machine, bucket: Bucket, variables: dict[str, str]
) -> None:
    end = compile_file(machine, ONE, "--target", "cuda:90", "--push", **variables)
    assert (end.status, len(bucket.keys("triton"))) == (0, 1)


def test_what_did_not_come_into_the_bucket_is_an_error(machine: Machine, bucket: Bucket) -> None:
    end = compile_file(machine, ONE, "--target", "cuda:90", "--push", S3CACHE_DISK_LIMIT="20kB")
    assert (end.status, bucket.keys("triton")) == (1, [])
    assert "a result was not kept" in end.stderr
    assert "1 of 1 kernels are not in the bucket" in end.stderr


def test_warm_fetches_what_a_job_used_and_the_kernels(new_machine: NewMachine, pushed: Pushed) -> None:
    note(pushed.bucket, "train", Reference(0, Manifest("fx-graph", "key", [])))
    warm = new_machine(knows=pushed.bucket).s3cache("warm", "--job", "train", "--kernels")
    assert (warm.status, warm.stderr) == (0, "")
    job, kernels = warm.stdout.splitlines()
    assert job.startswith("s3cache: 1 entries of train are here, ")
    assert kernels.startswith("s3cache: 3 entries of kernels are here, ")


def test_warm_wants_a_job_or_kernels(machine: Machine) -> None:
    warm = machine.s3cache("warm")
    assert warm.status == 2
    assert "--job NAME, or S3CACHE_JOB, or --kernels" in warm.stderr


def test_who_may_not_write_is_told_that_nothing_is_stored(machine: Machine, bucket: Bucket) -> None:
    reader = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), READER, strict=True))
    end = compile_file(machine, ONE, "--push", **reader)
    assert end.status == 1
    assert "s3cache: 1 of 1 kernels are compiled" in end.stdout
    assert "Error: kernels may be missing in the bucket: " in end.stderr
    assert "s3:PutObject" in end.stderr.splitlines()[-1]
    assert bucket.names() == []


# What is refused before anything is compiled.


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no_such_file.py", "there is no file no_such_file.py"),
        ("no_such_module", "there is no module no_such_module, and it is no file that ends in .py"),
        ("./folder", "'./folder' is neither a module nor a file that ends in .py"),
        ("json", "json declares no kernel: put s3cache.kernels.declare above one"),
    ],
)
def test_a_source_that_has_no_kernels_is_refused(machine: Machine, source: str, says: str) -> None:
    end = machine.s3cache("kernels", "compile", source)
    assert (end.status, end.stdout) == (2, "")
    assert end.stderr.splitlines()[-1] == f"Error: Invalid value for MODULE_OR_FILE: {says}"


def test_a_source_that_raises_is_refused_with_its_line(machine: Machine) -> None:
    end = compile_file(machine, ONE + "raise RuntimeError('mine')\n")
    assert (end.status, end.stdout) == (2, "")
    assert end.stderr.splitlines()[-1] == "RuntimeError: mine"
    assert "Traceback" not in end.stderr


def test_a_source_that_ends_the_process_is_refused(machine: Machine) -> None:
    end = compile_file(machine, ONE + "import sys; sys.exit(0)\n")
    assert (end.status, end.stdout) == (2, "")
    assert "ours.py ends the process when it is imported" in end.stderr


@pytest.mark.parametrize(
    ("options", "variables", "says"),
    [
        (
            ["--target", "h100"],
            {},
            "a target is cuda and one compute capability, as an H100's cuda:90, not 'h100'",
        ),
        (["--push"], {"S3CACHE_URL": None}, "S3CACHE_URL is not set; set it to s3://bucket/prefix"),
        (["--check"], {"S3CACHE_URL": None}, "S3CACHE_URL is not set; set it to s3://bucket/prefix"),
        (["--push"], {"S3CACHE_MODE": "read-only"}, "--push stores nothing: S3CACHE_MODE is read-only"),
        (["--push"], {"S3CACHE_EXCLUDE": "triton"}, "S3CACHE_EXCLUDE has triton; take it out"),
        (["--push"], {"S3CACHE_MODE": "off"}, "--push stores nothing: S3CACHE_MODE is off"),
        ([], {"TRITON_INTERPRET": "1"}, "with TRITON_INTERPRET set nothing is compiled: unset it"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    machine: Machine, options: list[str], variables: dict[str, str | None], says: str
) -> None:
    end = compile_file(machine, ONE, *options, **variables)
    assert (end.status, end.stdout) == (2, "")
    assert end.stderr.splitlines()[-1].endswith(says)


def test_what_cannot_be_stored_for_want_of_a_folder_is_an_error(machine: Machine) -> None:
    machine.cache.mkdir(mode=0o777)
    machine.cache.chmod(0o777)
    end = compile_file(machine, ONE, "--push")
    assert (end.status, end.stdout) == (1, "")
    assert "s3cache is off: " in end.stderr
    assert end.stderr.splitlines()[-1].startswith("Error: --push stores nothing")


# Whether the fleet would find what is compiled here.

PYTHON, TRITON = platform.python_version(), version("triton")


def test_without_a_machine_that_has_a_gpu_nothing_is_known_of_the_fleet(
    machine: Machine, bucket: Bucket
) -> None:
    note(bucket, "on-a-cpu", python=PYTHON, triton=TRITON, gpus="")
    end = compile_file(machine, ONE, "--check")
    assert (end.status, end.stdout) == (1, "")
    assert end.stderr.startswith("Error: nothing is known of the fleet: ")
    assert bucket.url in end.stderr
    assert "let one run a job, or leave --check out" in end.stderr


def test_kernels_that_no_machine_would_find_are_not_compiled(machine: Machine, bucket: Bucket) -> None:
    note(bucket, "old-python", python="3.8.1", triton=TRITON, gpus="8")
    note(bucket, "old-triton", python=PYTHON, triton="1.0.0", gpus="1")
    end = compile_file(machine, ONE, "--check")
    assert (end.status, end.stdout) == (1, "")
    *others, error = end.stderr.splitlines()
    assert sorted(others) == [
        f"s3cache: other versions: old-python: Python 3.8.1, triton {TRITON}, {platform_tag()}",
        f"s3cache: other versions: old-triton: Python {PYTHON}, triton 1.0.0, {platform_tag()}",
    ]
    assert error.endswith(f"here are Python {PYTHON}, triton {TRITON}, {platform_tag()}")


def test_kernels_that_one_machine_would_find_are_compiled_and_without_push_not_stored(
    machine: Machine, bucket: Bucket
) -> None:
    note(bucket, "old", python="3.8.1", triton=TRITON, gpus="1")
    note(bucket, "new", python=PYTHON, triton=TRITON, gpus="1")
    before = bucket.names()
    end = compile_file(machine, ONE, "--check")
    assert end.status == 0
    assert "s3cache: other versions: old: " in end.stderr
    assert "s3cache: other versions: new: " not in end.stderr
    assert "s3cache: 1 of 1 kernels are compiled" in end.stdout
    assert bucket.names() == before
    assert len(list((machine.folder / "home/.triton/cache").glob("*/scale.cubin"))) == 1


def test_without_push_a_source_that_imports_torch_leaves_the_cache_off(machine: Machine) -> None:
    pytest.importorskip("torch")
    end = compile_file(machine, ONE + "import torch\n")
    assert end.status == 0
    assert not machine.cache.exists()


def test_a_bucket_that_cannot_be_asked_is_no_answer(machine: Machine) -> None:
    end = compile_file(machine, ONE, "--check", AWS_ENDPOINT_URL_S3=REFUSING)
    assert (end.status, end.stdout) == (1, "")
    assert "AWS_ENDPOINT_URL_S3" in end.stderr
    assert len(end.stderr.splitlines()) == 1
