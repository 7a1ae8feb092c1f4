"""GPUs that are not here: what Triton asks of a driver when it compiles, answered for a target."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

_WARP_SIZES = {"cuda": 32}
_TARGET = re.compile(r"(cuda):(\d{2,3})\Z")


class Target(NamedTuple):
    """A kind of GPU: as "cuda:90" of an H100."""

    backend: str
    arch: int

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Return the target of that name. Raises ValueError when it is none."""
        match = _TARGET.match(text)
        if not match:
            raise ValueError(
                f"a target is cuda and one compute capability, as an H100's cuda:90, not {text!r}"
            )
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        """Return its name."""
        return f"{self.backend}:{self.arch}"


class _Driver:
    """Answers as the driver of one GPU does before anything is launched."""

    def __init__(self, target: Target) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(target.backend, target.arch, _WARP_SIZES[target.backend])

    def get_current_target(self) -> "GPUTarget":
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """Let Triton compile for a target in this context. Nothing can be launched meanwhile."""
    from triton.runtime import driver

    before = driver._active
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver._active = before
