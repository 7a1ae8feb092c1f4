"""Compiling ahead: every configuration of every declaration for every target, on a machine without a GPU.

It is done by a process of its own: another test may have turned Triton's interpreter on in this one.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from s3cache.kernels.compiling import Compiled, Job, compile_all, jobs_of, load
from s3cache.kernels.target import Target

TARGETS = [Target("cuda", 90), Target("cuda", 80)]
DECLARED = """
from types import SimpleNamespace
from s3cache.kernels import declare

plain = declare({"x": "*fp32"})(declare({"x": "*fp16"})(SimpleNamespace()))
tuned = declare({"x": "*fp32"})(SimpleNamespace(configs=["first", "second", "third"]))
"""
WRONG = "from s3cache.kernels import declare\n"
KERNELS = """
import triton
import triton.language as tl
from s3cache.kernels import declare

@declare({"x": "*fp32", "size": "i32:16"}, {"block": 64})
@declare({"x": "*fp32", "size": "i32"}, {"block": 64})
@declare({"x": "*fp32", "size": "i32:1"}, {"block": 64})
@declare({"x": "*fp32", "size": "i64"}, {"block": 64})
@declare({"x": "*u16", "size": "i64:16"}, {"block": 64})
@triton.jit
def scale(x, size, block: tl.constexpr):
    at = tl.arange(0, block)
    tl.store(x + at, tl.load(x + at, mask=at < size) * 2, mask=at < size)

@declare({"x": "*fp32", "is_on": "u1", "by": "fp32"}, {"block": 64}, num_warps=1)
@triton.jit
def shift(x, is_on, by, block: tl.constexpr):
    at = tl.arange(0, block)
    tl.store(x + at, tl.load(x + at, mask=is_on) + by)

CONFIGURATIONS = [triton.Config({"block": 64}, num_warps=2), triton.Config({"block": 100})]

@declare({"x": "*fp32"}, {"value": 1.0})
@triton.autotune(CONFIGURATIONS, [])
@triton.heuristics({"value": lambda arguments: 1.0})
@triton.jit
def fill(x, block: tl.constexpr, value: tl.constexpr):
    tl.store(x + tl.arange(0, block), value)

@declare({"x": "*fp32"}, {"value": 1.0})
@triton.heuristics({"value": lambda arguments: 1.0})
@triton.autotune(CONFIGURATIONS, [])
@triton.jit
def refill(x, block: tl.constexpr, value: tl.constexpr):
    tl.store(x + tl.arange(0, block), value)
"""


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are compiled here, even beside tests that interpret them."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def declared(tmp_path: Path) -> str:
    path = tmp_path / "declared.py"
    path.write_text(DECLARED)
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's own folder."""
    return tmp_path_factory.mktemp("triton-cache")


@pytest.fixture(scope="module")
def compiled(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    """What came of KERNELS."""
    pytest.importorskip("triton")
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("kernels") / "kernels.py"
    path.write_text(KERNELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        # Each kernel for one target after the other, by the same process.
        return list(compile_all(jobs_of(str(path), TARGETS), 1))


def of(compiled: list[Compiled], kernel: str) -> list[Compiled]:
    return sorted(each for each in compiled if each.job.kernel == kernel)


def test_a_module_is_loaded_by_its_name() -> None:
    assert load("s3cache.kernels.target").Target is Target


def test_a_file_is_loaded_once(declared: str) -> None:
    module = load(declared)
    assert load(os.path.relpath(declared)) is module
    assert hasattr(module, "plain")


def test_files_of_one_name_are_two_modules(declared: str, tmp_path: Path) -> None:
    other = tmp_path / "other" / "declared.py"
    other.parent.mkdir()
    other.write_text("plain = 1\n")
    assert load(declared) is not load(str(other))
    assert load(str(other)).plain == 1


@pytest.mark.parametrize(
    "source",
    ["no_such_file.py", "no_such_module", "json.no_such_module", "ours.ipynb", "..", "./kernels", ""],
)
def test_what_is_not_there_is_refused_by_name(source: str) -> None:
    with pytest.raises(ImportError) as refused:
        load(source)
    assert source in str(refused.value)


def test_what_lies_beside_a_file_can_be_imported_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("block = 64\n")
    (tmp_path / "importing.py").write_text("import beside_it\n")
    assert load(str(tmp_path / "importing.py")).beside_it.block == 64


def test_a_module_of_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_this_folder.py").write_text("block = 64\n")
    assert load("of_this_folder").block == 64


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("import no_such_module", "import no_such_module", "No module named 'no_such_module'"),
        ("\nraise RuntimeError('mine')", "line 2", "RuntimeError: mine"),
        ("def", "line 1", "SyntaxError: "),
        (WRONG + "declare(['*fp32'])", "declare(['*fp32'])", "declare takes a dict of types by argument"),
        (WRONG + "declare({}, ['block'])", "declare({}, ['block'])", "and one of constants"),
        (WRONG + "declare({'x': 16})", "declare({'x': 16})", 'the type of x is a word, as "i32", not 16'),
    ],
)
def test_what_a_source_raises_is_said_with_its_line_and_none_of_ours(
    tmp_path: Path, text: str, line: str, says: str
) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(ImportError, match="cannot be imported") as refused:
            load(str(path))
        assert line in str(refused.value)
        assert says in str(refused.value)
        assert "compiling.py" not in str(refused.value)
        assert "declaration.py" not in str(refused.value)


def test_all_configurations_of_all_declarations_are_compiled_for_all_targets(declared: str) -> None:
    jobs = jobs_of(declared, TARGETS)
    plain = [Job(declared, "plain", number, 0, target) for number in range(2) for target in TARGETS]
    tuned = [Job(declared, "tuned", 0, number, target) for number in range(3) for target in TARGETS]
    assert jobs == plain + tuned


def test_a_module_that_declares_nothing_has_no_jobs() -> None:
    assert jobs_of("s3cache.kernels.target", TARGETS) == []


def test_a_kernel_is_compiled_for_gpus_that_are_not_here(compiled: list[Compiled], cache: Path) -> None:
    made = of(compiled, "scale")
    assert [each.error for each in made] == [""] * 10
    binaries = [path.read_bytes() for path in cache.glob("*/scale.cubin")]
    assert all(binary.startswith(b"\x7fELF") for binary in binaries)
    assert len(binaries) == len(made)
    targets = [path.read_text().partition(".target ")[2].split()[0] for path in cache.glob("*/scale.ptx")]
    assert sorted(targets) == ["sm_80"] * 5 + ["sm_90a"] * 5


def test_each_specialization_and_each_target_is_another_kernel(compiled: list[Compiled]) -> None:
    made = of(compiled, "scale")
    assert len({each.digest for each in made}) == len(made) == 10


def test_scalars_and_options_are_as_declared(compiled: list[Compiled], cache: Path) -> None:
    assert [each.error for each in of(compiled, "shift")] == ["", ""]
    for path in cache.glob("*/shift.ttgir"):
        text = path.read_text()
        assert "%is_on: i1" in text
        assert "%by: f32" in text
        assert '"ttg.num-warps" = 1' in text


@pytest.mark.parametrize("kernel", ["fill", "refill"])
def test_a_configuration_that_cannot_be_compiled_is_named_and_the_rest_goes_on(
    compiled: list[Compiled], kernel: str
) -> None:
    good, bad = of(compiled, kernel)[:2], of(compiled, kernel)[2:]
    assert [(each.error, len(each.digest)) for each in good] == [("", 64)] * 2
    assert {each.job.target for each in bad} == set(TARGETS)
    for each in bad:
        assert each.title.startswith(f"{kernel}(x: *fp32; value=1.0) for {each.job.target}, block: 100, ")
        assert "arange's range must be a power of 2" in each.error
        assert each.digest == ""


CRASHING = """
import os
import triton
import triton.language as tl
from s3cache.kernels import declare

@declare({"x": "*fp32"}, {"block": 64})
@triton.jit
def crash(x, block: tl.constexpr):
    tl.store(x + tl.arange(0, block), 0.0)

@declare({"x": "u32"}, {"block": 64})
@declare({"x": "*u4"}, {"block": 64})
@declare({"y": "*fp32"}, {"block": 64})
@declare({"x": "*fp32"})
@declare({"x": "*fp32", "block": "i32"}, {"block": 64})
@triton.jit
def zero(x, block: tl.constexpr):
    tl.store(x + tl.arange(0, block), 0.0)

@declare({"x": "*fp32"})
def plain(x): ...

crash.warmup = lambda **_: os.abort()
"""


def test_what_crashes_the_compiler_or_is_declared_wrong_is_named(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "crashing.py"
    path.write_text(CRASHING)
    crashed, *wrong = sorted(compile_all(jobs_of(str(path), TARGETS[:1]), 2))
    assert crashed.title == "crash(x: *fp32; block=64) for cuda:90"
    assert crashed.error == "the process that compiled it died"
    assert [re.split("; |, and ", each.error)[0] for each in wrong] == [
        "TypeError: triton.jit is missing below declare",
        "TypeError: u32 of x is no type of a number",
        "TypeError: *u4 of x is no type that is known",
        "TypeError: the kernel has no argument y",
        "TypeError: block is neither among the types nor the constants",
        "TypeError: block is said twice: among the types, the constants, what is tuned",
    ]
