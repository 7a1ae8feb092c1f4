"""PyTorch's own remote caches, where the user turned them on: our store instead of Redis."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from s3cache.client import Client
from s3cache.integration.hooks import guarded, require
from s3cache.integration.pytorch import best_configs, code_states
from s3cache.integration.pytorch.switch import active_client

_MEMBER = "content"


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.remote_cache`. Raises HookMissing if it is not as expected."""
    require(module, "RemoteCacheBackend", *(f"{name}.backend_override_cls" for name in _KINDS))

    class S3CacheBackend(module.RemoteCacheBackend):  # type: ignore[misc, name-defined]
        """Stands where PyTorch's Redis backend does."""

        def __init__(self, kind: _Kind) -> None:
            super().__init__()
            self._kind = kind

        @guarded
        def _get(self, key: str) -> bytes | None:
            client = active_client()
            return self._kind.read(client, key) if client else None

        @guarded
        def _put(self, key: str, data: bytes) -> None:
            if client := active_client():
                self._kind.write(client, key, data)

    for name, kind in _KINDS.items():
        cache_class = getattr(module, name)
        if cache_class.backend_override_cls is None:
            cache_class.backend_override_cls = _maker(S3CacheBackend, kind)


def _maker(backend_class: Callable[["_Kind"], Any], kind: "_Kind") -> Callable[[], Any]:
    return lambda: backend_class(kind)


class _Kind(Protocol):
    """How one of PyTorch's remote caches lies in our store. Keys are `pt2:<cache>::<key>:c<version>`."""

    def read(self, client: Client, key: str) -> bytes | None: ...

    def write(self, client: Client, key: str, data: bytes) -> None: ...


@dataclass(frozen=True)
class _Graphs:
    """Entries that are stored when they are recorded as artifacts, whatever the flags say."""

    namespace: str

    def read(self, client: Client, key: str) -> bytes | None:
        entry = client.get(self.namespace, _inner(key))
        return None if entry is None else _as_json(entry.members[_MEMBER])

    def write(self, client: Client, key: str, data: bytes) -> None: ...


class _CodeStates:
    def read(self, client: Client, key: str) -> bytes | None:
        content = code_states.stored(client, _inner(key))
        return None if content is None else _as_json(content)

    def write(self, client: Client, key: str, data: bytes) -> None:
        from torch._dynamo import pgo

        code_states.recorder.offer(_inner(key), pgo._CODE_STATE)


class _BestConfigs:
    def read(self, client: Client, key: str) -> bytes | None:
        return next(iter(best_configs.stored(client, key)), None)

    def write(self, client: Client, key: str, data: bytes) -> None:
        best_configs.put(client, key, data)


@dataclass(frozen=True)
class _Verbatim:
    namespace: str

    def read(self, client: Client, key: str) -> bytes | None:
        entry = client.get(self.namespace, key)
        return None if entry is None else entry.members[_MEMBER]

    def write(self, client: Client, key: str, data: bytes) -> None:
        client.put(self.namespace, key, {_MEMBER: data})


_KINDS: dict[str, _Kind] = {
    "RemoteFxGraphCache": _Graphs("fx-graph"),
    "RemoteAOTAutogradCache": _Graphs("aot-autograd"),
    "RemoteDynamoPGOCache": _CodeStates(),
    "RemoteAutotuneCache": _BestConfigs(),
    "RemoteBundledAutotuneCache": _Verbatim("bundled-autotune"),
}


def _inner(key: str) -> str:
    return key.partition("::")[2].rpartition(":")[0]


def _as_json(content: bytes) -> bytes:
    return json.dumps({"data": base64.b64encode(content).decode()}).encode()
