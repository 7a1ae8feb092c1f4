"""Prints the seconds of a get of one 64 KiB member from the disk tier, and of plain read + hash."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

import s3cache

SIZE = 64 * 1024
ROUNDS = 40
CALLS = 100


def seconds_a_call(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) / CALLS


def main() -> None:
    content = os.urandom(SIZE)
    plain = Path(sys.argv[1])
    plain.write_bytes(content)
    with s3cache.open_sync(os.environ["S3CACHE_URL"]) as cache:
        cache.put("benchmark", "64-kib", {"member": content})

        def get() -> object:
            return cache.get("benchmark", "64-kib")

        def read_and_hash() -> object:
            return blake3(plain.read_bytes()).digest()

        entry = cache.get("benchmark", "64-kib")
        assert entry is not None
        assert entry.members["member"] == content
        rounds = [(seconds_a_call(get), seconds_a_call(read_and_hash)) for _ in range(ROUNDS)]
    gets, reads = zip(*rounds, strict=True)
    print(json.dumps([statistics.median(gets), statistics.median(reads)]))


if __name__ == "__main__":
    main()
