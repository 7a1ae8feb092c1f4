"""The probes of what vector code the CPU, the compiler and PyTorch can do: compiled, one by one."""

from types import ModuleType
from typing import Any

from s3cache.integration.hooks import require, wrap
from s3cache.integration.pytorch.cpp_facts import facts

from s3cache.digest import digest_of


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.cpu_vec_isa`."""
    require(module, "VecISA.check_build", "VecISA._probe_load", "valid_vec_isa_list")
    wrap(module, "VecISA.check_build", _check_build)
    wrap(module, "valid_vec_isa_list", _valid_vec_isa_list)


def _check_build(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    known = facts()
    code = kwargs.get("code", args[0] if args else "")
    question = f"check_build {instance.build_arch_flags()} {digest_of(code.encode())}"
    answer = known.get(question)
    if answer is None:
        answer = wrapped(*args, **kwargs)
        known.add(question, answer)
    return answer


def _valid_vec_isa_list(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    found = wrapped(*args, **kwargs)
    facts().save()
    return found
