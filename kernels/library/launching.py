"""How operators launch kernels: so that torch.compile sees what is launched, where that is possible."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import triton
from torch.library import triton_op, wrap_triton

TYPES = ("bf16", "fp16", "fp32")
"""What the kernels of this library take; all of them compute in fp32."""


def jit(function: Callable[..., object], *, unspecialized: Sequence[str] = ()) -> Any:
    """Return a kernel, which is the same one for all values of `unspecialized`; triton.jit is not typed."""
    return triton.jit(function, do_not_specialize=list(unspecialized))


def autotune(configurations: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Any]:
    """Return a decorator of kernels: triton.autotune, which is not typed."""
    return cast(Callable[[Any], Any], triton.autotune(list(configurations), key=list(key)))


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes an operator of torch, one that changes none of its arguments."""
    return cast(Callable[[Callable[..., Any]], Any], triton_op(f"s3cache::{name}", mutates_args={}))


def launchable(kernel: Any) -> Any:
    """Return what is launched by [grid]: torch traces through it, but not through Triton's interpreter."""
    return kernel if triton.knobs.runtime.interpret else wrap_triton(kernel)


def block_of(columns: int) -> int:
    """Return the columns that a program holds of a row."""
    return cast(int, triton.next_power_of_2(columns))


def warps_of(block: int) -> int:
    """Return the warps of a program that holds so many columns: 8 columns a thread, 16 warps at most."""
    return max(1, min(16, block // 256))


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as rows, one after another in memory."""
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()
