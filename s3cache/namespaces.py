"""The kinds of result, what happens when one key is written twice, and what a pinned run sees of them."""

from enum import Enum


class Rule(Enum):
    """What two values of one key are to each other."""

    FIRST = "first"
    """Any of them is right: the first one written for a variant stays."""
    REVISED = "revised"
    """A later value may be better: all are kept, the adapter picks the best."""
    UNION = "union"
    """Each knows something: all are kept, the adapter unites them."""


_RULES = {
    "autotune": Rule.REVISED,
    "cpp-probe": Rule.UNION,
    "dynamo-pgo": Rule.UNION,
    "gemm-autotune": Rule.UNION,
}


def rule_of(namespace: str) -> Rule:
    """Return the rule of a namespace: FIRST unless it is one whose values grow."""
    return _RULES.get(namespace, Rule.FIRST)


_UNPINNED = frozenset({"driver-kernel"})


def is_pinned(namespace: str) -> bool:
    """Return whether ranks must agree on what is there; not if all compile the same, with it or without."""
    return namespace not in _UNPINNED
