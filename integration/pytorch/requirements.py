"""What Inductor's code for CPUs requires of a machine. PyTorch's keys do not say all of it."""

from functools import cache

from s3cache import client

_CPP_SOURCE = b"#include"


def cpu_codegen_requirements(content: bytes) -> dict[str, str]:
    """Return what a result requires: nothing, unless there is C++ source in it.

    C++ source is written for the vector ISA that was picked and for a number of threads.
    """
    return {"vec_isa": vec_isa(), "threads": threads()} if _CPP_SOURCE in content else {}


def vec_isa() -> str:
    """Return the vector ISA that Inductor picks in this process, with its compiler flags."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    picked = pick_vec_isa()
    return f"{picked} {picked.build_arch_flags()}"


def threads() -> str:
    """Return the number of threads that Inductor writes into a CPU kernel, or "dynamic"."""
    import torch
    from torch._inductor import config

    if config.cpp.dynamic_threads:
        return "dynamic"
    return str(config.cpp.threads if config.cpp.threads > 0 else torch.get_num_threads())


@cache
def build() -> str:
    """Return what names this build of torch and of Python."""
    import sysconfig

    import torch

    return f"{torch.__version__} {torch.version.git_version} {sysconfig.get_config_var('SOABI')}"


client.machine.learn("vec_isa", vec_isa)
client.machine.learn("threads", threads)
