"""What a script does in steps, each counted for itself, and what two machines came to with it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from textwrap import dedent
from typing import Any

import pytest

from s3cache.digest import digest_of
from tests.integration.starts import Fleet, Machine, Start

STEPS = """
    from contextlib import ExitStack, contextmanager

    import torch
    from torch import nn
    from torch._dynamo.utils import counters
    from torch._inductor.utils import clear_caches

    DEVICE, ROLE = os.environ["DEVICE"], os.environ["ROLE"]
    steps = {}

    @contextmanager
    def step(name, *patches):
        torch._dynamo.reset()
        clear_caches()
        counters.clear()
        torch.manual_seed(0)
        computed = []
        with ExitStack() as patched:
            for patch in patches:
                patched.enter_context(patch)
            yield computed.append
        steps[name] = {
            "computed": [value.double().sum().item().hex() for value in computed],
            **{kind: counters[kind] for kind in ("inductor", "aot_autograd", "dynamo_cache", "frames")},
        }
"""
"""Begins every script: `with step(name, patches) as computed` counts what PyTorch does in it.

ROLE is "a" on the machine that records, "b" on the fresh one.
"""


_COUNTED = ("inductor", "aot_autograd", "dynamo_cache", "frames")


class Caches(Enum):
    """Which of PyTorch's caches the user turned on."""

    LOCAL = ()
    REMOTE = (
        "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE",
        "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE",
        "TORCHINDUCTOR_AUTOTUNE_REMOTE_CACHE",
        "TORCH_DYNAMO_AUTOMATIC_DYNAMIC_REMOTE_PGO",
    )

    @property
    def variables(self) -> dict[str, str]:
        return dict.fromkeys(self.value, "1")


class Device(Enum):
    """Where a script computes."""

    CPU = "cpu"
    CUDA = "cuda"


DEVICES = [
    pytest.param(Device.CPU, id="cpu"),
    pytest.param(Device.CUDA, id="cuda", marks=pytest.mark.gpu),
]


@dataclass(frozen=True)
class Step:
    """What PyTorch counted in one step, and what it computed."""

    computed: list[str]
    inductor: Counter[str]
    aot_autograd: Counter[str]
    dynamo_cache: Counter[str]
    frames: Counter[str]

    @property
    def hits(self) -> int:
        return self.inductor["fxgraph_cache_hit"]

    @property
    def misses(self) -> int:
        return self.inductor["fxgraph_cache_miss"]

    @property
    def benchmarked(self) -> int:
        """How often something was timed."""
        return sum(n for name, n in self.inductor.items() if name.startswith("benchmarking."))


@dataclass(frozen=True)
class RoundTrip:
    """The start on machine A, which recorded, and that on machine B, which had only the bucket."""

    recorded: Start
    restored: Start
    b: Machine
    _script: str
    _variables: dict[str, str]

    def start(self, machine: Machine, **variables: str) -> Start:
        """Start the same script on one more machine, or once more."""
        return machine.start(self._script, **self._variables | variables)

    def on_a(self, step: str) -> Step:
        return step_of(self.recorded, step)

    def on_b(self, step: str) -> Step:
        return step_of(self.restored, step)


def travel(
    fleet: Fleet,
    script: str,
    caches: Caches,
    device: Device,
    *,
    b: Machine,
    prepare: Callable[[Machine, Machine], None] | None = None,
    **variables: str,
) -> RoundTrip:
    """Record a script on a machine, and start it on machine `b` once `prepare` has had both."""
    # Scripts, and the ways to run one, do not find each other's graphs; they find its libraries.
    tag = f"{digest_of(script.encode())[:16]}-{caches.name}-{device.name}"
    apart = {"TORCH_COMPILE_CACHE_KEY_TAG": tag, "S3CACHE_JOB": tag}
    variables |= apart | caches.variables | {"DEVICE": device.value, "ROLE": "b"}
    text = dedent(STEPS) + dedent(script)
    a = fleet.recorder()
    recorded = a.start(text, **variables | {"ROLE": "a"})
    if prepare:
        prepare(a, b)
    # What A left behind could be found by an absolute path.
    a.folder.rename(a.folder.with_name(f"{a.folder.name}-gone"))
    return RoundTrip(recorded, b.start(text, **variables), b, text, variables)


def step_of(start: Start, name: str) -> Step:
    """Return what a start came to in one step."""
    facts: dict[str, Any] = start.facts["steps"][name]
    counts = {kind: Counter(facts[kind]) for kind in _COUNTED}
    return Step(facts["computed"], **counts)
