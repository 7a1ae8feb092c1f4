"""First launches of kernels that were compiled without a GPU, on fresh machines."""

import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bars import Number
from benchmarks.gpu.ahead import SOURCES, compile_ahead, load, said
from benchmarks.lab import Lab
from benchmarks.machine import S3CACHE, Ended, Machine

LAUNCHING = Path(__file__).with_name("launching.py")
LAUNCHABLE = (".cubin", ".json")


def starts(lab: Lab, file: Path | None) -> list[Number]:
    """Launch the library's kernels, and those of a user's file, compiled ahead and fetched.

    They come from `file`, as benchmarks.gpu.ahead wrote it on another machine, or are compiled here with
    no GPU to be seen.
    """
    return [number for name in SOURCES for number in _of(lab, name, file)]


@dataclass(frozen=True)
class _Launched:
    seconds: float
    compiled: list[str]
    found: int

    @classmethod
    def of(cls, ended: Ended) -> "_Launched":
        return cls(**json.loads(ended.said))


def _of(lab: Lab, name: str, file: Path | None) -> list[Number]:
    command = [sys.executable, str(LAUNCHING), *(SOURCES[name] or ["library"])]
    cold = lab.machine()
    no_cache = [_Launched.of(lab.machine().execute(command)) for _ in range(lab.runs - 1)]
    no_cache.append(_Launched.of(cold.execute(command)))
    kernels = [path for path in (cold.root / "triton").rglob("*") if path.suffix and path.is_file()]
    with lab.wire() as wire:
        url = lab.url()
        settings = lab.settings(url, wire) | {"S3CACHE_JOB": "launching"}
        if file:
            load(lab, file, name, url)
        else:
            compile_ahead(lab, name, settings)
        machine = lab.machine()
        lab.say(said(machine, ["warm", "--kernels"], settings))
        first = _Launched.of(machine.execute(command, settings))
        lab.say(f"first machine: {first}")
        without_compiler = settings | {"PATH": str(_without_compilers(lab))}
        second = _Launched.of(lab.machine().execute(command, without_compiler))
        lab.say(f"second machine, no compiler: {second}")
        fresh, hot, fetched = [], [], 0
        for _ in range(lab.runs):
            machine = lab.machine()
            ended = machine.execute([str(S3CACHE), "run", "--", *command], settings)
            assert ended.report
            fetched = ended.report.namespaces["triton"].bytes_down
            lab.say(f"fresh: {ended.report}")
            fresh.append(_Launched.of(ended).seconds)
            hot.append(_Launched.of(cold.execute(command)).seconds)
        text = _show(machine, settings)
    middle = [statistics.median(each) for each in ([run.seconds for run in no_cache], fresh, hot)]
    launchable = sum(path.stat().st_size for path in kernels if path.suffix in LAUNCHABLE)
    size = sum(path.stat().st_size for path in kernels if path.suffix != ".so")
    return [
        Number(
            f"{name}: compiles on the first machine", 0, len(first.compiled), note=f"{first.found} found"
        ),
        Number(
            f"{name}: compiles on the second, no C compiler on PATH",
            0,
            len(second.compiled),
            note=f"{second.found} found",
        ),
        Number(
            f"{name}: first launches, fresh ÷ no cache",
            1,
            middle[1] / middle[0],
            note=f"no cache {middle[0]:.2f} s, fresh {middle[1]:.2f} s, hot local {middle[2]:.2f} s",
        ),
        Number(
            f"{name}: bytes fetched ÷ all files of its kernels",
            1,
            fetched / size,
            note=f"{fetched} fetched; binaries and metadata {launchable}, all {size}; a text shown: {text}",
        ),
    ]


def _show(machine: Machine, settings: dict[str, str]) -> str:
    """Return the first line of a text that no launch needed, from the bucket."""
    key = next((machine.root / "triton").glob("*/*.cubin")).parent.name
    ptx = said(machine, ["show", "triton", key, "--member", "ptx"], settings)
    return next(line for line in ptx.splitlines() if line.startswith(".target"))


def _without_compilers(lab: Lab) -> Path:
    """Return a folder for PATH that has nothing but what Python and Triton ask for."""
    folder = lab.folder()
    folder.mkdir()
    for name in ("env", "ldconfig"):
        if found := shutil.which(name, path="/usr/bin:/sbin:/usr/sbin"):
            (folder / name).symlink_to(found)
    return folder
