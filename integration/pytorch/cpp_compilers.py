"""Questions that Inductor asks a C++ compiler at every start: is it there, which version is it."""

from types import ModuleType
from typing import Any

from s3cache.integration.hooks import Wrapper, require, wrap
from s3cache.integration.pytorch import cpp_refusals
from s3cache.integration.pytorch.cpp_facts import facts

_QUESTIONS = ("cpp_compiler_search", "_is_intel_compiler", "get_compiler_version_info")
_SINCE_2_15 = "_compiler_version_string"


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.cpp_builder`. Raises HookMissing if it is not as expected."""
    require(module, *_QUESTIONS, "CppBuilder.build")
    questions = (*_QUESTIONS, _SINCE_2_15) if hasattr(module, _SINCE_2_15) else _QUESTIONS
    for question in questions:
        wrap(module, question, _remembered(question))
    wrap(module, "CppBuilder.build", _build)


def _remembered(function: str) -> Wrapper:
    def ask(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        known = facts()
        question = f"{function} {args!r} {kwargs!r}"
        answer = known.get(question) if known else None
        if answer is None:
            answer = wrapped(*args, **kwargs)
            # A compiler that PyTorch installed into a folder of this machine is not on others.
            is_local = isinstance(answer, str) and answer.startswith("/") and answer not in question
            if known and answer != "" and not is_local:
                known.add(question, answer)
        return answer

    return ask


def _build(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        cpp_refusals.note(error)
        raise
