"""Targets: their names, and a driver that stands for one while Triton compiles."""

import pytest

from s3cache.kernels.target import Target, compiling_for


@pytest.mark.parametrize("arch", [75, 80, 90, 100, 120])
def test_a_target_comes_back_from_its_name(arch: int) -> None:
    target = Target.parse(f"cuda:{arch}")
    assert target == Target("cuda", arch)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "cuda", "cuda:", "cuda:9", "cuda:9.0", "cuda:sm_90", "cuda:90a", "cuda:90\n", "hip:90", "90"],
)
def test_what_is_no_target_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="cuda:90, not ") as refused:
        Target.parse(text)
    assert repr(text) in str(refused.value)


def test_triton_is_told_of_the_target_and_afterwards_of_what_is_here() -> None:
    driver = pytest.importorskip("triton.runtime").driver
    before = driver._active
    with compiling_for(Target("cuda", 80)):
        told = driver.active.get_current_target()
        with compiling_for(Target("cuda", 90)):
            assert driver.active.get_current_target().arch == 90
        assert driver.active.get_current_target() == told
    assert (told.backend, told.arch, told.warp_size) == ("cuda", 80, 32)
    assert driver._active is before


def test_the_driver_that_is_here_comes_back_after_an_error() -> None:
    driver = pytest.importorskip("triton.runtime").driver
    before = driver._active
    with pytest.raises(ZeroDivisionError), compiling_for(Target("cuda", 90)):
        1 / 0  # noqa: B018
    assert driver._active is before
