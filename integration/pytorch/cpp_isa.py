"""The probes of what vector code the CPU, the compiler and PyTorch can do: compiled, one by one."""

from types import ModuleType
from typing import Any

from s3cache.digest import digest_of
from s3cache.integration.hooks import require, wrap
from s3cache.integration.pytorch import cpp_refusals
from s3cache.integration.pytorch.cpp_facts import facts


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.cpu_vec_isa`. Raises HookMissing if it is not as expected."""
    require(module, "VecISA.check_build", "VecISA.build_arch_flags", "valid_vec_isa_list")
    wrap(module, "VecISA.check_build", _check_build)
    wrap(module, "valid_vec_isa_list", _valid_vec_isa_list)


def _check_build(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    known = facts()
    code = kwargs.get("code", args[0] if args else "")
    question = f"check_build {instance.build_arch_flags()} {digest_of(code.encode())}"
    answer = known.get(question) if known else None
    if answer is not None:
        return answer
    with cpp_refusals.watched() as refusals:
        answer = wrapped(*args, **kwargs)
    # A probe that failed for any other reason (no memory, no space, noexec) may succeed elsewhere.
    if known and (answer or refusals.seen):
        known.add(question, answer)
    return answer


def _valid_vec_isa_list(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    found = wrapped(*args, **kwargs)
    if known := facts():
        known.save()
    return found
