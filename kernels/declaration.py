"""Declarations: beside its source, a kernel says how it is launched, so that it can be compiled ahead.

    @declare({"x": "*bf16", "out": "*bf16", "size": "i32:16"}, {"block": 1024}, num_warps=8)
    @triton.jit
    def double(x, out, size, block: tl.constexpr): ...

A signature has Triton's own words for types. A pointer is aligned to 16 bytes, as all memory of torch
is; an integer is "i32:16" where it is always a multiple of 16, and "i32:1" where it is always 1: a launch
is specialized by that. Of an autotuned kernel all configurations are compiled.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

K = TypeVar("K")


@dataclass(frozen=True)
class Declaration:
    """One way in which a kernel is launched: types of its arguments, values of its constants, options."""

    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int]

    def __str__(self) -> str:
        """Return it on one line."""
        types = ", ".join(f"{name}: {kind}" for name, kind in self.signature.items())
        values = ", ".join(
            f"{name}={value!r}" for name, value in {**self.constants, **self.options}.items()
        )
        return f"({types}; {values})" if values else f"({types})"


_declarations: dict[int, tuple[Any, list[Declaration]]] = {}


def declare(
    signature: Mapping[str, str], constants: Mapping[str, Any] | None = None, **options: int
) -> Callable[[K], K]:
    """Say of the kernel below, which stays as it is, how it is launched. There may be several.

    Raises TypeError when that is no dict of types, or no dict of constants.
    """
    if not isinstance(signature, Mapping) or not isinstance(constants, Mapping | None):
        raise TypeError(
            'declare takes a dict of types by argument, as {"x": "*bf16"}, and one of constants'
        )
    for name, kind in signature.items():
        if not isinstance(kind, str):
            raise TypeError(f'the type of {name} is a word, as "i32", not {kind!r}; values are constants')

    def note(kernel: K) -> K:
        _, found = _declarations.setdefault(id(kernel), (kernel, []))
        found.append(Declaration(dict(signature), dict(constants or {}), options))
        return kernel

    return note


def declared(module: object) -> Iterator[tuple[str, Any, list[Declaration]]]:
    """Yield name, kernel and declarations of what a module declares, in the order of its names."""
    seen: set[int] = set()
    for name, value in vars(module).items():
        if id(value) in _declarations and id(value) not in seen:
            seen.add(id(value))
            yield name, value, list(reversed(_declarations[id(value)][1]))
