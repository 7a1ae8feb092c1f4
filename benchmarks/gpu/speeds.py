"""How fast the library's kernels are: bandwidth beside a device-to-device copy, matmul beside cuBLAS."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from triton.testing import do_bench, do_bench_cudagraph

from benchmarks.bars import Number
from s3cache.kernels import library

ROWS, WIDTH, HEADS = 32_768, 8192, 64
"""512 MiB a tensor in bf16: ten times what the cache of an H100 holds."""
SIZES = (2048, 4096, 8192)
TYPE = torch.bfloat16


def bandwidths() -> Iterator[Number]:
    """Measure the forward kernels that memory bounds."""
    x, other = torch.randn(2, ROWS, WIDTH, device="cuda", dtype=TYPE)
    weight, bias = torch.randn(2, WIDTH, device="cuda", dtype=TYPE)
    heads = x.view(8, ROWS // 8, HEADS, WIDTH // HEADS)
    angles = torch.randn(ROWS // 8, WIDTH // HEADS // 2, device="cuda")
    cosine, sine = angles.cos(), angles.sin()
    size = x.nbytes
    # Alone or in a graph, a copy is not made the same way: the faster one counts.
    copy = 2 * size / min(_seconds(lambda: other.copy_(x)), do_bench(lambda: other.copy_(x)) / 1000)
    kernels: dict[str, tuple[int, Callable[[], object]]] = {
        "RMSNorm": (2 * size, lambda: library.rms_norm(x, weight)),
        "LayerNorm": (2 * size, lambda: library.layer_norm(x, weight, bias)),
        "SwiGLU": (3 * size, lambda: library.swiglu(x, other)),
        "RoPE": (2 * size, lambda: library.rope(heads, cosine, sine)),
    }
    for name, (moved, run) in kernels.items():
        reached = moved / _seconds(run)
        note = f"{reached / 1e12:.2f} ÷ {copy / 1e12:.2f} TB/s"
        yield Number(f"{name}: bandwidth ÷ that of a copy", 0.9, reached / copy, note=note, is_floor=True)


def products() -> Iterator[Number]:
    """Measure the matrix product; there is no bar for it."""
    for n in SIZES:
        a, b = torch.randn(2, n, n, device="cuda", dtype=TYPE)
        library.matmul(a, b)
        runs = [partial(multiply, a, b) for multiply in (library.matmul, torch.matmul)]
        ours, cublas = (2 * n**3 / _seconds(run) for run in runs)
        note = f"{ours / 1e12:.0f} ÷ {cublas / 1e12:.0f} TFLOP/s"
        yield Number(f"matmul {n}³: speed ÷ cuBLAS", 0, ours / cublas, note=note, is_floor=True)


def _seconds(run: Callable[[], object]) -> float:
    milliseconds: float = do_bench_cudagraph(run, rep=100, return_mode="median")
    return milliseconds / 1000
