"""A kernel whose best configuration was found is launched with it, and nothing else is tried."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from torch._inductor.runtime import runtime_utils
from torch._inductor.runtime.triton_heuristics import Config

from s3cache.integration.pytorch import retuning
from tests.integration.conftest import NewFleet
from tests.integration.starts import Start

CASES = {
    "one, and descent ended elsewhere": ([[1, 1024]], [1, 2048]),
    "one, and descent ended there": ([[1, 1024]], [1, 1024]),
    "several, and descent ended at one": ([[1, 1024], [2, 1024]], [2, 1024]),
    "several, and descent ended elsewhere": ([[1, 1024], [2, 1024]], [4, 1024]),
}
"""Block sizes that a kernel has to choose from, and those where coordinate descent ended."""

# Inductor's own autotuner of a reduction, and Triton's compiler: all that a graph does but to launch.
TUNED = f"""
import pickle
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import triton
import triton.language as tl
from torch._inductor.codecache import StaticAutotunerFuture
from torch._inductor.runtime import hints, triton_helpers, triton_heuristics
from torch._inductor.runtime.triton_heuristics import CachingAutotuner, Config

from s3cache.kernels.target import Target, compiling_for

@triton.jit
def sums(rows, out, number, length, XBLOCK: tl.constexpr, R0_BLOCK: tl.constexpr):
    row = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
    column = tl.arange(0, R0_BLOCK)[None, :]
    total = tl.full([XBLOCK, R0_BLOCK], 0, tl.float32)
    for at in range(0, length, R0_BLOCK):
        here = (row < number) & (at + column < length)
        total += tl.load(rows + row * length + at + column, mask=here, other=0.0)
    tl.store(out + row, tl.sum(total, 1)[:, None], row < number)

def load(autotuner):
    for result in autotuner.compile_results:
        result.kernel.n_regs = 128

CachingAutotuner._make_launchers = load
triton_helpers.set_driver_to_gpu = lambda: None
gpu = hints.DeviceProperties(
    type="cuda", index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, warp_size=32,
)
kinds = dict(rows="*fp32", out="*fp32", number="i32", length="i32")
kinds |= dict(XBLOCK="constexpr", R0_BLOCK="constexpr")
triton_meta = dict(signature=kinds, device=gpu, constants=dict(), configs=[dict()])
inductor_meta = dict(coordinate_descent_tuning=True, autotune_local_cache=True, kernel_name="sums")

def config(blocks):
    return Config(dict(zip(("XBLOCK", "R0_BLOCK"), blocks)), num_warps=4, num_stages=1)

def kernel(name, blocks, is_known=False):
    file = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "ke", name + ".py")
    configs, info = [config(each) for each in blocks], None
    if is_known:
        configs, _, info = triton_heuristics.check_autotune_cache(configs, str(file), inductor_meta)
    autotuner = CachingAutotuner(
        sums,
        triton_meta=deepcopy(triton_meta),
        configs=configs,
        save_cache_hook=None,
        mutated_arg_names=[],
        optimize_mem=False,
        heuristic_type=triton_heuristics.HeuristicType.REDUCTION,
        size_hints=dict(x=1 << 20, r0_=4096),
        inductor_meta=dict(inductor_meta),
        filename=str(file),
        autotune_cache_info=info,
    )
    autotuner._precompile_worker()
    return autotuner

def handed_over(autotuner):
    before = autotuner.prepare_for_pickle()
    pickled = pickle.dumps(autotuner)
    autotuner.restore_after_unpickle(before)
    copy = pickle.loads(pickled)
    copy.restore_after_unpickle(None)
    return copy

def reload():
    return SimpleNamespace(fn=sums)

def launched(autotuner):
    autotuner.precompile(reload_kernel=reload)
    configs = [result.config for result in autotuner.compile_results]
    return [[config.kwargs for config in configs], getattr(configs[0], "found_by_coordesc", False)]

def launched_by_graph(autotuner):
    future = StaticAutotunerFuture(autotuner)
    future.reload_kernel_from_src = reload
    return launched(future.result())

def save(autotuner, blocks, **how):
    configs = [result.config for result in autotuner.compile_results]
    _, cache, _ = triton_heuristics.check_autotune_cache(configs, autotuner.filename, inductor_meta)
    Path(autotuner.filename).parent.mkdir(parents=True, exist_ok=True)
    cache.save(config(blocks), 1_000_000, found_by_coordesc=True, **how)

untuned, found, compiled, brought, chosen = dict(), dict(), dict(), dict(), dict()
with compiling_for(Target.parse("cuda:90")):
    for name, (blocks, ended_at) in {CASES!r}.items():
        autotuner = kernel(name, blocks)
        if "RECORD" in os.environ:
            untuned[name] = launched(kernel(name, blocks))
            save(autotuner, ended_at)
        found[name] = launched_by_graph(autotuner)
        compiled[name] = launched(handed_over(kernel(name, blocks, is_known=True)))
        brought[name] = launched_by_graph(handed_over(kernel(name, blocks, is_known=True)))
        if blocks[0] != ended_at:
            name += ", by the heuristic alone"
            if "RECORD" in os.environ:
                save(kernel(name, blocks), ended_at, triton_cache_hash="as before descent")
            chosen[name] = launched(handed_over(kernel(name, blocks, is_known=True)))
report(untuned=untuned, found=found, compiled=compiled, brought=brought, chosen=chosen)
"""


@pytest.fixture(scope="module")
def starts(new_fleet: NewFleet) -> list[Start]:
    """What the machine said that found the configurations, and then one that had none of them."""
    fleet = new_fleet()
    return [fleet.recorder().run(TUNED, RECORD="1"), fleet.fresh().run(TUNED)]


def named(blocks: list[int]) -> dict[str, int]:
    return dict(zip(("XBLOCK", "R0_BLOCK"), blocks, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_found_yet_is_tried_with_half_of_its_block_too(starts: list[Start], case: str) -> None:
    blocks, _ = CASES[case]
    tried = [*blocks, *([row, block // 2] for row, block in blocks)]
    assert starts[0].facts["untuned"][case] == [[named(each) for each in tried], False]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["found", "compiled", "brought"])
def test_what_descent_ended_at_alone_is_launched(starts: list[Start], how: str, case: str) -> None:
    """Found for a graph that lacks it; compiled by a worker that found it; brought by a graph of that."""
    _, ended_at = CASES[case]
    for start in starts:
        assert start.facts[how][case] == [[named(ended_at)], True]


def test_what_the_heuristic_chose_is_descended_from(starts: list[Start]) -> None:
    for start in starts:
        assert len(start.facts["chosen"]) == 3
        assert [is_by_descent for _, is_by_descent in start.facts["chosen"].values()] == [False] * 3


def test_a_fresh_machine_compiles_none_of_them(starts: list[Start]) -> None:
    assert starts[1].count("bucket_hits", "autotune") >= len(CASES)
    assert starts[1].count("misses") == 0
    assert starts[1].warnings == []


class Hooked(SimpleNamespace):
    """What the hooks see of an autotuner whose graph brought kernels with blocks of these sizes."""

    def __init__(self, *blocks: int, found: int | None) -> None:
        best = None if found is None else hashed(config(found))
        super().__init__(
            compile_results=[SimpleNamespace(config=config(each)) for each in blocks],
            autotune_cache_info=None if best is None else {"best_config": best},
            fn=SimpleNamespace(fn=None),
            _precompile_config=lambda config: SimpleNamespace(config=config),
        )

    def blocks(self) -> list[tuple[int, bool]]:
        configs = [result.config for result in self.compile_results]
        return [(each.kwargs["XBLOCK"], getattr(each, "found_by_coordesc", False)) for each in configs]


def config(block: int, **how: bool) -> Any:
    made = Config({"XBLOCK": block}, num_warps=4, num_stages=1)
    vars(made).update(how)
    return made


def hashed(config: Any) -> Any:
    return runtime_utils.triton_config_to_hashable(config)


def test_the_one_kernel_of_a_graph_gives_way_to_what_was_found() -> None:
    autotuner = Hooked(64, found=128)
    reloaded = object()
    source = {"reload_kernel_from_src": lambda: SimpleNamespace(fn=SimpleNamespace(fn=reloaded))}
    retuning._recheck_autotune_cache(lambda **_: None, autotuner, (), source)
    assert autotuner.blocks() == [(128, True)]
    assert autotuner.fn.fn is reloaded


@pytest.mark.parametrize(
    "autotuner", [Hooked(64, found=64), Hooked(64, found=None), Hooked(64, 128, found=None)]
)
def test_what_the_graph_brought_stays_otherwise(autotuner: Hooked) -> None:
    before = list(autotuner.compile_results)
    source = {"reload_kernel_from_src": pytest.fail}
    retuning._recheck_autotune_cache(lambda **_: None, autotuner, (), source)
    assert autotuner.compile_results == before


@pytest.mark.parametrize(("found", "tried"), [(64, None), (None, "halves")])
def test_a_block_that_was_found_is_not_halved(found: int | None, tried: str | None) -> None:
    autotuner = Hooked(64, found=found)
    assert retuning._dynamic_scale_rblock(lambda: "halves", autotuner, (), {}) == tried


@pytest.mark.parametrize(
    ("filed", "is_found"),
    [
        ({"found_by_coordesc": True}, True),
        ({"found_by_coordesc": False}, False),
        (
            {"found_by_coordesc": True, "triton_cache_hash": "what the heuristic chose, before descent"},
            False,
        ),
    ],
)
def test_how_a_configuration_was_found_is_not_forgotten(filed: dict[str, Any], is_found: bool) -> None:
    configs = [config(64), config(128)]
    best = config(128, found_by_coordesc=filed["found_by_coordesc"])

    def load(read: dict[str, Any], *_: Any) -> Any:
        read.clear()
        return best

    assert retuning._load_cached_autotuning(load, None, (filed, "hash", configs, {}), {}) is best
    marks = [getattr(each, "found_by_coordesc", False) for each in (best, *configs)]
    assert marks == [is_found, False, is_found]
