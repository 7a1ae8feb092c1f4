"""The Triton kernels of a transformer's training, compiled for an H100 on a machine without a GPU.

python -m benchmarks.kernels FOLDER
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import click

try:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
except ImportError as error:
    raise ImportError("Compiling kernels needs Triton, not a GPU: pip install triton==3.6.0") from error

TARGET = GPUTarget("cuda", 90, 32)
COUNT = 162
HALVES = ("bf16", "fp16")
DTYPES = (*HALVES, "fp32")
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


def jit(function: Callable[..., object]) -> Any:
    """triton.jit, which is not typed."""
    return triton.jit(function)


@jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    return 1 / (1 + tl.exp(-x))


@jit
def gelu(x: tl.tensor) -> tl.tensor:
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@jit
def maximum_and_sum(
    m: tl.tensor, s: tl.tensor, other_m: tl.tensor, other_s: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    top = tl.maximum(m, other_m)
    return top, s * tl.exp(m - top) + other_s * tl.exp(other_m - top)


@jit
def add_gelu(x: tl.tensor, bias: tl.tensor, out: tl.tensor, size: tl.tensor, block: tl.constexpr) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    value = tl.load(x + at, mask=inside).to(tl.float32) + tl.load(bias + at % 4096, mask=inside)
    tl.store(out + at, gelu(value), mask=inside)


@jit
def swiglu(gate: tl.tensor, up: tl.tensor, out: tl.tensor, size: tl.tensor, block: tl.constexpr) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    g = tl.load(gate + at, mask=inside).to(tl.float32)
    u = tl.load(up + at, mask=inside).to(tl.float32)
    tl.store(out + at, g * sigmoid(g) * u, mask=inside)


@jit
def swiglu_backward(
    grad: tl.tensor, gate: tl.tensor, up: tl.tensor, size: tl.tensor, block: tl.constexpr
) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    d = tl.load(grad + at, mask=inside).to(tl.float32)
    g = tl.load(gate + at, mask=inside).to(tl.float32)
    u = tl.load(up + at, mask=inside).to(tl.float32)
    s = sigmoid(g)
    tl.store(gate + at, d * u * (s + g * s * (1 - s)), mask=inside)
    tl.store(up + at, d * g * s, mask=inside)


@jit
def dropout_add(
    x: tl.tensor, residual: tl.tensor, out: tl.tensor, seed: tl.tensor, size: tl.tensor, block: tl.constexpr
) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    value = tl.load(x + at, mask=inside).to(tl.float32)
    kept = tl.where(tl.rand(seed, at) > 0.1, value / 0.9, 0.0)
    tl.store(out + at, kept + tl.load(residual + at, mask=inside), mask=inside)


@jit
def adamw(
    weight: tl.tensor,
    grad: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    size: tl.tensor,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    w = tl.load(weight + at, mask=inside).to(tl.float32)
    g = tl.load(grad + at, mask=inside).to(tl.float32)
    m = 0.9 * tl.load(mean + at, mask=inside) + 0.1 * g
    v = 0.95 * tl.load(square + at, mask=inside) + 0.05 * g * g
    tl.store(mean + at, m, mask=inside)
    tl.store(square + at, v, mask=inside)
    tl.store(weight + at, w * (1 - 3e-5) - 3e-4 * m / (tl.sqrt(v) + 1e-8), mask=inside)


@jit
def rope(x: tl.tensor, cosine: tl.tensor, sine: tl.tensor, heads: tl.constexpr, half: tl.constexpr) -> None:
    row = tl.program_id(0)
    head, at = tl.arange(0, heads)[:, None], tl.arange(0, half)[None, :]
    c, s = tl.load(cosine + row * half + at), tl.load(sine + row * half + at)
    left = x + (row * heads + head) * 2 * half + at
    a, b = tl.load(left).to(tl.float32), tl.load(left + half).to(tl.float32)
    tl.store(left, a * c - b * s)
    tl.store(left + half, b * c + a * s)


@jit
def rms_norm(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, width: tl.tensor, block: tl.constexpr
) -> None:
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / width + 1e-6)
    tl.store(out + row * width + at, value * scale * tl.load(weight + at, mask=inside), mask=inside)


@jit
def rms_norm_backward(
    grad: tl.tensor, x: tl.tensor, weight: tl.tensor, out: tl.tensor, width: tl.tensor, block: tl.constexpr
) -> None:
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0).to(tl.float32)
    d = tl.load(grad + row * width + at, mask=inside, other=0) * tl.load(weight + at, mask=inside, other=0)
    scale = tl.rsqrt(tl.sum(value * value) / width + 1e-6)
    along = tl.sum(d * value) / width
    tl.store(out + row * width + at, scale * (d - value * scale * scale * along), mask=inside)


@jit
def layer_norm(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor, width: tl.tensor, block: tl.constexpr
) -> None:
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0).to(tl.float32)
    centered = tl.where(inside, value - tl.sum(value) / width, 0)
    normal = centered * tl.rsqrt(tl.sum(centered * centered) / width + 1e-5)
    result = normal * tl.load(weight + at, mask=inside) + tl.load(bias + at, mask=inside)
    tl.store(out + row * width + at, result, mask=inside)


@jit
def softmax(x: tl.tensor, out: tl.tensor, width: tl.tensor, block: tl.constexpr) -> None:
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=float("-inf")).to(tl.float32)
    power = tl.exp(value - tl.max(value))
    tl.store(out + row * width + at, power / tl.sum(power), mask=inside)


@jit
def softmax_backward(
    grad: tl.tensor, y: tl.tensor, out: tl.tensor, width: tl.tensor, block: tl.constexpr
) -> None:
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < width
    value = tl.load(y + row * width + at, mask=inside, other=0).to(tl.float32)
    d = tl.load(grad + row * width + at, mask=inside, other=0).to(tl.float32)
    tl.store(out + row * width + at, value * (d - tl.sum(value * d)), mask=inside)


@jit
def column_sum(
    x: tl.tensor, out: tl.tensor, rows: tl.tensor, width: tl.tensor, block: tl.constexpr, step: tl.constexpr
) -> None:
    column = tl.program_id(0) * block + tl.arange(0, block)[None, :]
    inside = column < width
    total = tl.zeros((step, block), tl.float32)
    for start in range(0, rows, step):
        row = start + tl.arange(0, step)[:, None]
        total += tl.load(x + row * width + column, mask=inside & (row < rows), other=0).to(tl.float32)
    tl.store(out + column, tl.sum(total, 0)[None, :], mask=inside)


@jit
def cross_entropy(
    logits: tl.tensor, labels: tl.tensor, loss: tl.tensor, width: tl.tensor, block: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * width
    top = tl.full((block,), float("-inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    for first in range(0, width, block):
        at = first + tl.arange(0, block)
        value = tl.load(start + at, mask=at < width, other=-1e30).to(tl.float32)
        top, total = maximum_and_sum(top, total, value, tl.full((block,), 1.0, tl.float32))
    highest, normal = tl.reduce((top, total), 0, maximum_and_sum)
    label = tl.load(labels + row)
    tl.store(loss + row, highest + tl.log(normal) - tl.load(start + label).to(tl.float32))
    for first in range(0, width, block):
        at = first + tl.arange(0, block)
        inside = at < width
        share = tl.exp(tl.load(start + at, mask=inside, other=-1e30).to(tl.float32) - highest) / normal
        tl.store(start + at, tl.where(at == label, share - 1, share), mask=inside)


@jit
def matmul(
    a: tl.tensor,
    b: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    depth: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    activation: tl.constexpr,
) -> None:
    tiles_m, tiles_n = tl.cdiv(rows, block_m), tl.cdiv(columns, block_n)
    tile_m, tile_n = tl.swizzle2d(
        tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n, tiles_m, tiles_n, 8
    )
    row = tile_m * block_m + tl.arange(0, block_m)
    column = tile_n * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    left = a + (row % rows)[:, None] * depth + k[None, :]
    right = b + k[:, None] * columns + (column % columns)[None, :]
    total = tl.zeros((block_m, block_n), tl.float32)
    for start in range(0, depth, block_k):
        x = tl.load(left, mask=k[None, :] < depth - start, other=0)
        y = tl.load(right, mask=k[:, None] < depth - start, other=0)
        total = tl.dot(x, y, total)
        left += block_k
        right += block_k * columns
    if activation:
        total = gelu(total)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(out + row[:, None] * columns + column[None, :], total, mask=inside)


@jit
def attention(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    out: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    width: tl.constexpr,
    causal: tl.constexpr,
) -> None:
    first = tl.program_id(0) * block_m
    head = tl.program_id(1).to(tl.int64) * length * width
    row, column, at = first + tl.arange(0, block_m), tl.arange(0, block_n), tl.arange(0, width)
    own = head + row[:, None] * width + at[None, :]
    q = tl.load(query + own, mask=row[:, None] < length, other=0)
    top = tl.full((block_m,), float("-inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    result = tl.zeros((block_m, width), tl.float32)
    end = first + block_m if causal else length
    for start in range(0, end, block_n):
        seen = start + column
        k = tl.load(key + head + seen[None, :] * width + at[:, None], mask=seen[None, :] < length, other=0)
        score = tl.dot(q, k) * (scale * LOG2_E)
        allowed = seen[None, :] <= row[:, None] if causal else seen[None, :] < length
        score = tl.where(allowed, score, -1e30)
        highest = tl.maximum(top, tl.max(score, 1))
        power = tl.exp2(score - highest[:, None])
        fade = tl.exp2(top - highest)
        total = total * fade + tl.sum(power, 1)
        v = tl.load(
            value + head + seen[:, None] * width + at[None, :], mask=seen[:, None] < length, other=0
        )
        result = tl.dot(power.to(v.dtype), v, result * fade[:, None])
        top = highest
    tl.store(out + own, result / total[:, None], mask=row[:, None] < length)


@dataclass(frozen=True)
class Spec:
    """One kernel to compile: the types of its arguments, its constants and its options."""

    kernel: Any
    types: str
    constants: dict[str, int]
    options: dict[str, int] = field(default_factory=dict)

    def compile(self) -> None:
        """Compile down to a cubin, which Triton's cache keeps."""
        names = [name for name in self.kernel.arg_names if name not in self.constants]
        types = dict(zip(names, self.types.split(), strict=True))
        signature = {name: types.get(name, "constexpr") for name in self.kernel.arg_names}
        # As for the aligned tensors and round sizes of a launch: loads are vectorized by it.
        aligned = {
            (at,): [["tt.divisibility", 16]]
            for at, kind in enumerate(signature.values())
            if kind == "i32" or kind.startswith("*")
        }
        triton.compile(ASTSource(self.kernel, signature, self.constants, aligned), TARGET, self.options)


def specs() -> list[Spec]:
    """All kernels, mixed, so that the first few are like all."""
    found = [*_pointwise(), *_rows(), *_matmuls(), *_attentions()]
    random.Random(0).shuffle(found)
    return found


def compile_all(folder: Path, count: int = COUNT) -> None:
    """Have `count` kernels in a folder laid out as Triton's cache; at once when they are there."""
    # Triton writes the group's file last.
    if len(list(folder.glob("*/__grp__*.json"))) >= count:
        return
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder)
        for spec in specs()[:count]:
            spec.compile()


def _pointwise() -> Iterator[Spec]:
    kernels = {
        add_gelu: "*{0} *{0} *{0} i32",
        swiglu: "*{0} *{0} *{0} i32",
        swiglu_backward: "*{0} *{0} *{0} i32",
        dropout_add: "*{0} *{0} *{0} i32 i32",
        adamw: "*{0} *{0} *fp32 *fp32 i32",
    }
    for (kernel, types), dtype, block in product(kernels.items(), DTYPES, (512, 1024, 2048)):
        yield Spec(kernel, types.format(dtype), {"block": block})
    for dtype, heads in product(DTYPES, (8, 16, 32)):
        yield Spec(rope, f"*{dtype} *fp32 *fp32", {"heads": heads, "half": 64})


def _rows() -> Iterator[Spec]:
    kernels = {
        rms_norm: "*{0} *{0} *{0} i32",
        rms_norm_backward: "*{0} *{0} *{0} *{0} i32",
        layer_norm: "*{0} *{0} *{0} *{0} i32",
        softmax: "*{0} *{0} i32",
        softmax_backward: "*{0} *{0} *{0} i32",
        cross_entropy: "*{0} *i64 *fp32 i32",
    }
    for (kernel, types), dtype, block in product(kernels.items(), HALVES, (1024, 2048, 4096, 8192)):
        yield Spec(kernel, types.format(dtype), {"block": block}, {"num_warps": max(4, block // 1024)})
    for dtype, block in product(HALVES, (64, 128)):
        yield Spec(column_sum, f"*{dtype} *fp32 i32 i32", {"block": block, "step": 32})


def _matmuls() -> Iterator[Spec]:
    tiles = ((64, 64, 64), (64, 128, 64), (128, 64, 32), (128, 128, 64), (128, 256, 64))
    for dtype, (m, n, k), activation, stages in product(HALVES, tiles, (0, 1), (3, 4)):
        constants = {"block_m": m, "block_n": n, "block_k": k, "activation": activation}
        options = {"num_warps": 8 if m * n > 64 * 128 else 4, "num_stages": stages}
        yield Spec(matmul, f"*{dtype} *{dtype} *{dtype} i32 i32 i32", constants, options)


def _attentions() -> Iterator[Spec]:
    for dtype, (m, n), width, causal in product(HALVES, ((64, 64), (128, 64)), (64, 128), (0, 1)):
        constants = {"block_m": m, "block_n": n, "width": width, "causal": causal}
        options = {"num_warps": m // 16, "num_stages": 2}
        yield Spec(attention, " ".join([f"*{dtype}"] * 4) + " i32 fp32", constants, options)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    compile_all(folder)


if __name__ == "__main__":
    main()
