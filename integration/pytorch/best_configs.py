"""Launch configurations of Triton kernels, as the bucket keeps them: the best of several is read."""

import json
from collections.abc import Mapping
from typing import Any

from s3cache.client import Client

_NAMESPACE = "autotune"
_MEMBER = "content"


def stored(client: Client, key: str) -> list[bytes]:
    """Return the configurations under a key, the best first."""
    contents = [entry.members[_MEMBER] for entry in client.variants(_NAMESPACE, key)]
    return sorted(contents, key=lambda content: is_by_descent(json.loads(content)), reverse=True)


def put(client: Client, key: str, content: bytes) -> None:
    """Store a configuration.

    Machines measure different times: of what the heuristic found, and of what coordinate descent
    found, one is kept for a list of configurations to choose from.
    """
    found = json.loads(content)
    how = "coordinate-descent" if is_by_descent(found) else "heuristic"
    variant = f"{how} {found.get('configs_hash')}"
    client.put(_NAMESPACE, key, {_MEMBER: content}, variant=variant)


def use(client: Client, key: str) -> None:
    """Note that Inductor found a configuration by itself."""
    client.use(_NAMESPACE, key)


def is_by_descent(found: Mapping[str, Any]) -> bool:
    """Return whether a configuration, as PyTorch files it, is one that coordinate descent ended at."""
    # Since torch 2.13 what the heuristic found says so too, if descent is to follow; it alone has a hash.
    return bool(found.get("found_by_coordesc")) and not found.get("triton_cache_hash")
