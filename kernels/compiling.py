"""Compiling declared kernels: each configuration for each target in a process of its own kind."""

import base64
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from s3cache.kernels.declaration import Declaration, declared
from s3cache.kernels.target import Target, compiling_for

_OURS = (__file__, str(Path(__file__).with_name("declaration.py")), importlib.__file__)


class Job(NamedTuple):
    """What is compiled at one time: one configuration of one declaration, for one target."""

    source: str
    kernel: str
    declaration: int
    configuration: int
    target: Target


class Compiled(NamedTuple):
    """What came of a job: the hash of the kernel, or the error."""

    job: Job
    title: str
    digest: str = ""
    error: str = ""

    @property
    def key(self) -> str:
        """By what Triton asks its cache manager for the kernel."""
        return base64.b32encode(bytes.fromhex(self.digest)).decode().rstrip("=")


def load(source: str) -> ModuleType:
    """Return a module by name, also from the working directory, or by its file.

    What lies beside a file can be imported by it. Raises ImportError when there is none, or its code
    raises or ends the process.
    """
    path = Path(source)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise ImportError(f"there is no file {source}")
    if not is_file and not all(map(str.isidentifier, source.split("."))):
        raise ImportError(f"{source!r} is neither a module nor a file that ends in .py")
    # As Python does for a script and for -m, but behind what is installed.
    folder = str(path.parent.resolve()) if is_file else os.getcwd()  # noqa: PTH109
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return _from_file(path) if is_file else importlib.import_module(source)
    except SystemExit as error:
        raise ImportError(
            f'{source} ends the process when it is imported; let it do so below if __name__ == "__main__"'
        ) from error
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{source}.".startswith(f"{missing}."):
            raise ImportError(f"there is no module {source}, and it is no file that ends in .py") from error
        raise ImportError(f"{source} cannot be imported:\n{_said(error)}") from error


def _said(error: Exception) -> str:
    """Return what an error says, and where it came from in code that is not ours."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in _OURS and not frame.filename.startswith("<frozen ")
    ]
    lines = traceback.format_list(frames) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()


def _from_file(path: Path) -> ModuleType:
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def jobs_of(source: str, targets: Sequence[Target]) -> list[Job]:
    """Return all that a module declares, for all targets. Raises ImportError when there is none."""
    return [
        Job(source, name, number, configuration, target)
        for name, kernel, declarations in declared(load(source))
        for number in range(len(declarations))
        for configuration in range(max(len(_configurations(kernel)), 1))
        for target in targets
    ]


def compile_all(jobs: Iterable[Job], processes: int) -> Iterator[Compiled]:
    """Compile in so many processes, and yield what came of each job as soon as it is known."""
    broken: list[Job] = []
    with _pool(processes) as pool:
        under_way = {pool.submit(compile_one, job): job for job in jobs}
        try:
            for future in as_completed(under_way):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    broken.append(under_way[future])
        finally:
            for future in under_way:
                future.cancel()
    # The compiler of one of them crashed, and took the pool along: each has a process of its own now.
    for job in broken:
        with _pool(1) as pool:
            try:
                yield pool.submit(compile_one, job).result()
            except BrokenProcessPool:
                yield Compiled(job, title_of(job), error="the process that compiled it died")


def _pool(processes: int) -> ProcessPoolExecutor:
    # A fork would inherit what the client and Triton keep by process.
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def title_of(job: Job) -> str:
    """Return what a job is called: the kernel, how it is launched, the target, the configuration."""
    _, declaration, configurations = _find(job)
    title = f"{job.kernel}{declaration} for {job.target}"
    return f"{title}, {configurations[job.configuration]}" if configurations else title


def compile_one(job: Job) -> Compiled:
    """Compile in this process; Triton's cache manager takes care of the result."""
    kernel, declaration, configurations = _find(job)
    options: dict[str, Any] = dict(declaration.options)
    tuned: dict[str, Any] = {}
    if configurations:
        tuned = configurations[job.configuration].kwargs
        options |= configurations[job.configuration].all_kwargs()
    title = title_of(job)
    try:
        function = _base(kernel)
        # By device, of which there is one whatever the target, Triton remembers what it compiles for.
        function.device_caches.clear()
        with compiling_for(job.target):
            compiled = function.warmup(
                grid=(1,), **_arguments(function, declaration, tuned), **declaration.constants, **options
            )
        return Compiled(job, title, compiled.hash)
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip()
        return Compiled(job, title, error=last)


def _find(job: Job) -> tuple[Any, Declaration, list[Any]]:
    found = {name: (kernel, declarations) for name, kernel, declarations in declared(load(job.source))}
    kernel, declarations = found[job.kernel]
    return kernel, declarations[job.declaration], _configurations(kernel)


def _arguments(function: Any, declaration: Declaration, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands for a launch's arguments: Triton specializes by them as it does by real ones.

    Raises TypeError when the declaration does not say of each argument, once, what it is.
    """
    import torch
    from triton.runtime.jit import MockTensor

    if unknown := declaration.signature.keys() - set(function.arg_names):
        raise TypeError(f"the kernel has no argument {', '.join(sorted(unknown))}")
    for name, parameter in function.signature.parameters.items():
        said = [name in given for given in (declaration.signature, declaration.constants, tuned)]
        if sum(said) > 1:
            raise TypeError(f"{name} is said twice: among the types, the constants, what is tuned")
        if not any(said) and parameter.default is parameter.empty:
            raise TypeError(
                f"{name} is neither among the types nor the constants, and heuristics compute nothing here"
            )
    arguments: dict[str, Any] = {}
    for name in function.arg_names:
        kind = declaration.signature.get(name, "")
        if kind.startswith("*"):
            if kind[1:] not in _TORCH_TYPES:
                raise TypeError(
                    f"{kind} of {name} is no type that is known; they are {', '.join(_TORCH_TYPES)}"
                )
            arguments[name] = MockTensor.wrap_dtype(getattr(torch, _TORCH_TYPES[kind[1:]]))
        elif kind in _NUMBERS:
            arguments[name] = _NUMBERS[kind]
        elif kind:
            raise TypeError(f"{kind} of {name} is no type of a number; they are {', '.join(_NUMBERS)}")
    return arguments


_NUMBERS = {
    "i1": True,
    "u1": True,
    "i32": 3,
    "i32:1": 1,
    "i32:16": 16,
    "i64": (1 << 40) + 3,
    "i64:16": 1 << 40,
    "fp32": 0.5,
}
"""Of each type a value that Triton takes for it; 3 is neither 1 nor a multiple of 16."""
_TORCH_TYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "i1": "bool",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "fp8e4nv": "float8_e4m3fn",
    "fp8e5": "float8_e5m2",
}


def _base(kernel: Any) -> Any:
    """Return the function that is compiled, without its autotuner and heuristics."""
    from triton import JITFunction

    while not isinstance(kernel, JITFunction):
        if not hasattr(kernel, "fn"):
            raise TypeError("triton.jit is missing below declare")
        kernel = kernel.fn
    return kernel


def _configurations(kernel: Any) -> list[Any]:
    # Heuristics stand above an autotuner or below it.
    while not hasattr(kernel, "configs"):
        if not hasattr(kernel, "fn"):
            return []
        kernel = kernel.fn
    return list(kernel.configs)
