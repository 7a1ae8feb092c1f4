"""What `import torch` sets off: nothing without a bucket, and never any harm."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from s3cache.integration import autoload
from s3cache.integration.hooks import HookMissing
from tests.integration.jobs import TRAINING
from tests.integration.starts import Fleet, Machine, Start

LOOK = """
import sys, timeit, torch
from s3cache.integration.autoload import register
print(*sorted(name for name in sys.modules if name.split(".")[0] == "s3cache"))
print(min(timeit.repeat(register, number=1, repeat=5)))
"""

REGISTER = "from s3cache.integration.autoload import register; register()"

WITHOUT_A_HOOK = """
import builtins, wrapt

# PyTorch's own code still finds it; who looks into the module does not.
def remove(module):
    builtins._precompile_header = module._precompile_header
    del module._precompile_header

wrapt.register_post_import_hook(remove, "torch._inductor.codecache")
"""

GONE = {
    "torch.compiler._cache": ["CacheArtifactManager.record_artifact"],
    "torch._dynamo.package": ["CompilePackage.install"],
    "torch._dynamo.pgo": ["put_local_code_state"],
    "torch._functorch._aot_autograd.autograd_cache": ["AOTAutogradCache.save"],
    "torch._inductor.codecache": [
        "CppCodeCache._load_library",
        "FxGraphCache._save_graph",
        "FxGraphCache.cache_hit_post_compile",
        "PersistentCache.lookup",
    ],
    "torch._inductor.cpp_builder": ["CppBuilder.build"],
    "torch._inductor.cpu_vec_isa": ["VecISA.check_build"],
    "torch._inductor.remote_cache": ["RemoteBundledAutotuneCache"],
    "torch._inductor.runtime.autotune_cache": ["AutotuneCache.save"],
    "torch._inductor.runtime.triton_heuristics": ["CachingAutotuner._precompile_config"],
    "torch._inductor.triton_bundler": ["TritonBundler.load_autotuners"],
    "torch.cuda": ["_lazy_call"],
    "torch.distributed.distributed_c10d": ["_update_default_pg"],
    "triton.compiler.compiler": ["AsmDict.__missing__"],
    "triton.runtime.autotuner": ["Config.__setstate__"],
    "triton.runtime.build": ["platform_key"],
    "triton.runtime.cache": ["FileCacheManager.put_group"],
}
"""For every adapter, something that it hooks or uses."""

WITHOUT_ANY_HOOK = f"""
import wrapt

gone = {GONE}
taken = []

def take(module):
    for path in gone[module.__name__]:
        parent, name, _ = wrapt.resolve_path(module, path)
        taken.append((parent, name, vars(parent)[name]))
        delattr(parent, name)

def put_back(module):
    while taken:
        setattr(*taken.pop())

# What is taken before the adapters look is put back after that, since PyTorch itself needs it.
for name in gone:
    wrapt.register_post_import_hook(take, name)
wrapt.register_post_import_hook(
    lambda torch: [wrapt.register_post_import_hook(put_back, name) for name in gone], "torch"
)
"""

BROKEN = """
import wrapt

def fail(*args, **kwargs):
    raise RuntimeError("a mistake of ours")

def spoil(module):
    for method in "variants", "get", "put", "use", "profile":
        setattr(module.Client, method, fail)

wrapt.register_post_import_hook(spoil, "s3cache.client")
"""

LOADING = """
    import torch
    from torch.utils.data import DataLoader, Dataset

    @torch.compile
    def square(x):
        return x.square() + 1

    class Squares(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return square(torch.full((40,), float(index)))

    if __name__ == "__main__":
        torch.testing.assert_close(torch.compile(torch.tan)(torch.ones(40)), torch.ones(40).tan())
        for context in "fork", "spawn":
            loader = DataLoader(Squares(), batch_size=3, num_workers=1, multiprocessing_context=context)
            loaded = torch.cat([batch[:, 0] for batch in loader])
            torch.testing.assert_close(loaded, torch.arange(6.0).square() + 1)
        report()
"""


def test_without_a_bucket_nothing_happens() -> None:
    done = _python(LOOK)
    modules, seconds = done.stdout.splitlines()
    assert modules.split() == ["s3cache", "s3cache.integration", "s3cache.integration.autoload"]
    assert float(seconds) < 0.002
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("S3CACHE_URL", "http://bucket"),
        ("S3CACHE_MODE", "sometimes"),
        ("S3CACHE_DISK_LIMIT", "much"),
        ("S3CACHE_DIR", "/proc/nowhere"),
    ],
)
def test_a_setting_that_cannot_be_used_is_a_warning(variable: str, value: str) -> None:
    done = _python(REGISTER, **{"S3CACHE_URL": "s3://bucket", variable: value})
    assert "s3cache is off" in done.stderr
    assert value in done.stderr


def test_a_broken_installation_is_a_warning() -> None:
    done = _python(f"import sys; sys.modules['wrapt'] = None; {REGISTER}", S3CACHE_URL="s3://bucket")
    assert "s3cache is off" in done.stderr


@pytest.mark.parametrize("adapter", autoload._ADAPTERS)
def test_an_adapter_says_what_it_misses(adapter: str) -> None:
    install = import_module(f"s3cache.integration.{adapter}").install
    with pytest.raises(HookMissing, match=r"a_future_torch\.\w+"):
        install(ModuleType("a_future_torch"))


def test_a_hook_that_is_gone_turns_off_its_adapter_only(
    fleet: Fleet, recorder: Machine, recorded: Start, tmp_path: Path
) -> None:
    machine = fleet.copy_of(recorder, "inductor")
    machine.forget("fxgraph", "aotautograd")
    start = _start_with(WITHOUT_A_HOOK, machine, tmp_path)
    assert start.facts["losses"] == recorded.facts["losses"]
    assert start.facts["inductor"]["fxgraph_cache_hit"] == 2
    (warning,) = start.warnings
    assert "codecache._precompile_header is not in torch" in warning
    assert "cpp_libraries stays off" in warning


def test_every_adapter_whose_hook_is_gone_is_off_with_one_warning(
    fleet: Fleet, recorder: Machine, recorded: Start, tmp_path: Path
) -> None:
    machine = replace(fleet.copy_of(recorder, "inductor"), tmp=recorder.tmp)
    pytest.importorskip("triton")
    script = TRAINING + (
        "    import torch._inductor.runtime.triton_heuristics, torch._dynamo.package\n"
        "    import torch.distributed.distributed_c10d, triton.compiler.compiler\n"
    )
    start = _start_with(WITHOUT_ANY_HOOK, machine, tmp_path, script)
    assert start.facts["losses"] == recorded.facts["losses"]
    assert start.facts["inductor"]["fxgraph_cache_hit"] == 2
    assert not any(start.count(what) for what in ("bucket_hits", "disk_hits", "misses", "puts"))
    off = [line.split("stays off")[0].split()[-1] for line in start.warnings]
    assert sorted(off) == sorted(autoload._ADAPTERS)


def test_a_mistake_of_ours_does_not_harm_the_job(
    fleet: Fleet, recorder: Machine, recorded: Start, tmp_path: Path
) -> None:
    machine = fleet.copy_of(recorder, "inductor")
    machine.forget("fxgraph", "aotautograd")
    start = _start_with(BROKEN, machine, tmp_path)
    assert start.facts["losses"] == recorded.facts["losses"]
    assert start.facts["inductor"]["fxgraph_cache_miss"] == 2
    assert start.warnings
    assert len(set(start.warnings)) == len(start.warnings)


def test_the_ranks_of_torchrun_share_one_report(fleet: Fleet, read: Start) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start = fleet.fresh().start(TRAINING, launcher=launcher)
    assert len(start.ranks) == 2
    for rank in start.ranks:
        assert rank["losses"] == read.facts["losses"]
        assert rank["inductor"]["fxgraph_cache_hit"] == 2
        assert "fxgraph_cache_miss" not in rank["inductor"]
    assert start.compiled == []
    assert start.count("misses") == start.count("puts") == 0
    assert start.count("bytes_down") == read.count("bytes_down")
    assert start.warnings == []


def test_workers_that_load_data_use_the_cache_too(fleet: Fleet, recorded: Start) -> None:
    first = fleet.recorder().start(LOADING)
    start = fleet.fresh().start(LOADING)
    assert first.compiled
    assert start.compiled == []
    assert start.count("misses") == start.count("puts") == 0
    assert first.warnings == start.warnings == []


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def _start_with(customization: str, machine: Machine, folder: Path, script: str = TRAINING) -> Start:
    (folder / "sitecustomize.py").write_text(customization)
    return machine.start(script, PYTHONPATH=str(folder))
