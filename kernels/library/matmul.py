"""A matrix product whose tiles are tuned for each GPU."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from s3cache.kernels.declaration import declare
from s3cache.kernels.library.launching import TYPES, autotune, jit, launchable, operator

_TILES = (
    (64, 64, 64, 4, 4),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 4),
    (128, 128, 64, 8, 3),
    (128, 256, 64, 8, 3),
    (256, 128, 64, 8, 3),
)
"""Rows, columns and depth of a tile, warps, stages."""


def _configurations() -> list[triton.Config]:
    return [
        triton.Config(
            {"block_m": m, "block_n": n, "block_k": k, "group": 8}, num_warps=warps, num_stages=stages
        )
        for m, n, k, warps, stages in _TILES
    ]


@autotune(_configurations(), ["m", "n", "k"])
@jit
def matmul_kernel(
    a: tl.tensor,
    b: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
) -> None:
    # Tiles that share rows or columns follow each other, so that they find them in the cache.
    number = tl.program_id(0)
    rows, columns = tl.cdiv(m, block_m), tl.cdiv(n, block_n)
    of_group = number // (group * columns)
    first = of_group * group
    height = min(rows - first, group)
    row = first + number % (group * columns) % height
    column = number % (group * columns) // height
    at_m = row * block_m + tl.arange(0, block_m)
    at_n = column * block_n + tl.arange(0, block_n)
    at_k = tl.arange(0, block_k)
    from_a = a + (at_m % m)[:, None].to(tl.int64) * k + at_k[None, :]
    from_b = b + at_k[:, None].to(tl.int64) * n + (at_n % n)[None, :]
    total = tl.zeros((block_m, block_n), tl.float32)
    for start in range(0, k, block_k):
        left = tl.load(from_a, mask=start + at_k[None, :] < k, other=0.0)
        right = tl.load(from_b, mask=start + at_k[:, None] < k, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
        from_a += block_k
        from_b += block_k * n
    inside = (at_m < m)[:, None] & (at_n < n)[None, :]
    tl.store(out + at_m[:, None].to(tl.int64) * n + at_n[None, :], total, mask=inside)


for _type in TYPES[:2]:
    declare(
        {
            "a": f"*{_type}",
            "b": f"*{_type}",
            "out": f"*{_type}",
            "m": "i32:16",
            "n": "i32:16",
            "k": "i32:16",
        }
    )(matmul_kernel)


@operator("matmul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b for shapes (m, k) and (k, n), in the type of both, added up in fp32."""
    a, b = a.contiguous(), b.contiguous()
    (m, k), n = a.shape, b.shape[1]
    out = a.new_empty((m, n))
    if triton.knobs.runtime.interpret:
        # There is nothing to measure, and of bf16 the interpreter multiplies the bits.
        tile = _configurations()[0].kwargs
        tiles = triton.cdiv(m, tile["block_m"]) * triton.cdiv(n, tile["block_n"])
        matmul_kernel.fn[(tiles,)](a.float(), b.float(), out, m, n, k, **tile)
    else:

        def grid(tile: dict[str, int]) -> tuple[int]:
            return (triton.cdiv(m, tile["block_m"]) * triton.cdiv(n, tile["block_n"]),)

        launchable(matmul_kernel)[grid](a, b, out, m, n, k)
    return out


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(context: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    a, b = context.saved_tensors
    return matmul(grad, b.T), matmul(a.T, grad)


matmul.register_autograd(_gradient, setup_context=_save)
