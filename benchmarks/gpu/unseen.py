"""Five kernels as a user has them in a file: declared for compiling ahead, and launched once each.

They are in no library of ours, and each is launched in another way: plain, two types of pointers,
a reduction, an autotuned one, one with heuristics.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from s3cache.kernels import declare

ROWS, COLUMNS = 300, 1000


@declare({"x": "*fp32", "out": "*fp32", "size": "i32:16"}, {"block": 512})
@triton.jit
def softplus(x, out, size, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    value = tl.load(x + at, mask=inside)
    tl.store(out + at, tl.log(1 + tl.exp(value)), mask=inside)


@declare({"table": "*fp16", "rows": "*i64", "out": "*fp16", "columns": "i32"}, {"block": 1024})
@triton.jit
def gather(table, rows, out, columns, block: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, block)
    inside = at < columns
    start = tl.load(rows + row) * columns
    tl.store(out + row * columns + at, tl.load(table + start + at, mask=inside), mask=inside)


@declare({"x": "*bf16", "out": "*fp32", "columns": "i32"}, {"block": 1024}, num_warps=8)
@triton.jit
def largest(x, out, columns, block: tl.constexpr):
    at = tl.arange(0, block)
    row = tl.load(x + tl.program_id(0) * columns + at, mask=at < columns, other=float("-inf"))
    tl.store(out + tl.program_id(0), tl.max(row.to(tl.float32)))


@declare({"x": "*fp32", "y": "*fp32", "out": "*fp32", "size": "i32:16", "share": "fp32"})
@triton.autotune(
    [triton.Config({"block": block}, num_warps=warps) for block in (256, 1024) for warps in (2, 4)],
    key=["size"],
)
@triton.jit
def mix(x, y, out, size, share, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    value = tl.load(x + at, mask=inside) * share + tl.load(y + at, mask=inside) * (1 - share)
    tl.store(out + at, value, mask=inside)


@declare({"x": "*fp32", "out": "*i8", "size": "i32:16", "scale": "fp32"}, {"block": 256, "is_even": False})
@triton.heuristics({"is_even": lambda given: given["size"] % given["block"] == 0})
@triton.jit
def quantize(x, out, size, scale, block: tl.constexpr, is_even: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    if is_even:
        tl.store(out + at, (tl.load(x + at) * scale).to(tl.int8))
    else:
        inside = at < size
        tl.store(out + at, (tl.load(x + at, mask=inside) * scale).to(tl.int8), mask=inside)


def launch() -> None:
    """Launch each of them once."""
    size = ROWS * 1072
    x, y = torch.randn(2, size, device="cuda")
    out = torch.empty_like(x)
    softplus[(triton.cdiv(size, 512),)](x, out, size, block=512)
    table = torch.randn(ROWS, COLUMNS + 1, device="cuda", dtype=torch.float16)
    rows = torch.randint(ROWS, (ROWS,), device="cuda")
    gather[(ROWS,)](table, rows, torch.empty_like(table), COLUMNS + 1, block=1024)
    wide = table.to(torch.bfloat16)
    largest[(ROWS,)](wide, out, COLUMNS + 1, block=1024, num_warps=8)

    def grid(given: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(size, given["block"]),)

    mix[grid](x, y, out, size, 0.25)
    quantize[(triton.cdiv(size, 256),)](
        x, torch.empty(size, device="cuda", dtype=torch.int8), size, 3.5, block=256
    )
