"""A job that launches kernels for the first time: `python launching.py library` or a file's `launch`.

It ends with one line of JSON: the seconds from the first launch until all are done, the kernels that
were compiled, and how many were not.
"""

import json
import sys
import time
from typing import Any

import torch
from triton import knobs

from s3cache.kernels import library
from s3cache.kernels.compiling import load

ROWS, WIDTH, HEADS, VOCABULARY = 512, 4096, 16, 32_000


def launch() -> None:
    """Launch every kernel of the library once, forward and backward, in bf16."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    x, weight, bias = random(ROWS, WIDTH), random(WIDTH), random(WIDTH)
    library.rms_norm(x, weight).sum().backward()
    library.layer_norm(x, weight, bias).sum().backward()
    library.swiglu(x, random(ROWS, WIDTH)).sum().backward()
    angles = torch.randn(ROWS // 2, 64, device="cuda")
    library.rope(random(2, ROWS // 2, HEADS, 128), angles.cos(), angles.sin()).sum().backward()
    target = torch.randint(VOCABULARY, (64,), device="cuda")
    library.linear_cross_entropy(random(64, 256), random(VOCABULARY, 256), target).backward()
    library.matmul(random(ROWS, 1024), random(1024, 2048))


def main() -> None:
    compiled: list[str] = []
    found = 0

    def listen(*, metadata: Any, cache_hit: bool, **_: Any) -> None:
        nonlocal found
        found += cache_hit
        if not cache_hit:
            compiled.append(metadata["name"] if isinstance(metadata, dict) else metadata.name)

    knobs.compilation.listener = listen
    source = sys.argv[1]
    launch_all = launch if source == "library" else load(source).launch
    torch.zeros(1, device="cuda")
    began = time.perf_counter()
    launch_all()
    torch.cuda.synchronize()
    print(json.dumps({"seconds": time.perf_counter() - began, "compiled": compiled, "found": found}))


if __name__ == "__main__":
    main()
