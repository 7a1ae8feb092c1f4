"""Prints the median seconds that Triton takes for a kernel: to compile it, or to find it in its folder."""

import json
import statistics
import time

from s3cache.kernels.compiling import compile_one, jobs_of
from s3cache.kernels.target import Target

MODULES = ("s3cache.kernels.library.swiglu", "s3cache.kernels.library.cross_entropy")


def main() -> None:
    seconds: list[float] = []
    for module in MODULES:
        for job in jobs_of(module, [Target("cuda", 90)]):
            began = time.perf_counter()
            compiled = compile_one(job)
            seconds.append(time.perf_counter() - began)
            assert not compiled.error, compiled.error
    print(json.dumps(statistics.median(seconds)))


if __name__ == "__main__":
    main()
