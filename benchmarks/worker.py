"""A job's process, as the measurements need one: it does one thing and says in JSON what came of it.

worker.py MODE ITEMS [ARGUMENT...]; ITEMS is a file with a pickled list of (key, members, on demand).
"""

import json
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3cache import client

NAMESPACE = "triton"
SETTLED_SECONDS = 2.0
Items = Sequence[tuple[str, dict[str, bytes], frozenset[str]]]


def read(items: Items) -> None:
    """Get every entry."""
    cache = _cache()
    began = time.perf_counter()
    found = sum(cache.get(NAMESPACE, key) is not None for key, _, _ in items)
    say(found=found, seconds=time.perf_counter() - began)


def write(items: Items, seconds: str, stay: str) -> None:
    """Put every entry, evenly over so many seconds, then stay for as many more."""
    cache = _cache()
    time.sleep(SETTLED_SECONDS)
    at = time.monotonic()
    began = time.monotonic()
    for number, item in enumerate(items):
        time.sleep(max(began + number * float(seconds) / len(items) - time.monotonic(), 0.0))
        _put(cache, item)
    time.sleep(float(stay))
    say(at=at)


def look(items: Items, key: str) -> None:
    """Look one key up, with all its variants, once nothing else goes on."""
    cache = _cache()
    time.sleep(SETTLED_SECONDS)
    at = time.monotonic()
    found = len(list(cache.variants(NAMESPACE, key)))
    say(at=at, found=found, until=time.monotonic())


def vary(items: Items, key: str) -> None:
    """Put what the entries hold as variants of one key."""
    cache = _cache()
    for number, (_, members, _) in enumerate(items):
        cache.put(NAMESPACE, key, members, variant=f"guards-{number}")


def train(items: Items, steps: str) -> None:
    """Train for so many steps, or for so many seconds if it ends with "s", putting entries all along."""
    import torch

    cache = client.current()
    if cache:
        cache.start()
    torch.manual_seed(0)
    layers = [torch.nn.Linear(512, 512) for _ in range(4)]
    model = torch.nn.Sequential(*[module for layer in layers for module in (layer, torch.nn.GELU())])
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.randn(256, 512)
    waiting = list(reversed(items))
    began = time.perf_counter()
    done = 0
    while not _is_over(steps, done, time.perf_counter() - began):
        model(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        if cache and not steps.endswith("s"):
            while waiting and len(items) - len(waiting) < done * len(items) / int(steps):
                _put(cache, waiting.pop())
    say(steps=done, seconds=time.perf_counter() - began)


def say(**facts: Any) -> None:
    """Print what came of it."""
    print(json.dumps(facts), flush=True)


def _is_over(steps: str, done: int, seconds: float) -> bool:
    return seconds >= float(steps[:-1]) if steps.endswith("s") else done >= int(steps)


def _put(cache: client.Client, item: tuple[str, dict[str, bytes], frozenset[str]]) -> None:
    key, members, on_demand = item
    cache.put(NAMESPACE, key, members, on_demand=on_demand)


def _cache() -> client.Client:
    cache = client.current()
    assert cache is not None
    cache.start()
    return cache


if __name__ == "__main__":
    mode, path, *arguments = sys.argv[1:]
    modes = {"read": read, "write": write, "look": look, "vary": vary, "train": train}
    modes[mode](pickle.loads(Path(path).read_bytes()), *arguments)  # type: ignore[operator]
