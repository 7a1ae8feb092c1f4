"""Dynamo's profile of what is dynamic: how the bucket keeps it, and how it is united again."""

import atexit
import io
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from s3cache.client import Client
from s3cache.integration.hooks import guarded
from s3cache.integration.pytorch.switch import active_client

NAMESPACE = "dynamo-pgo"
_MEMBER = "content"
_FIRST_PAUSE_SECONDS = 5.0
_MAST = "mast:"
# Another process computes the same hash of a closure only where no cell holds a function, whose
# hash depends on the process; before 3.12 that of None does too.
_STABLE_CLOSURES = {hash((None,) * n) for n in range(1, 33)} if sys.version_info >= (3, 12) else set()

CodeState = Any
"""Dynamo's own: from CodeId to CodeState, which maps each source to the sizes that were seen."""


def stored(client: Client, cache_key: str) -> bytes | None:
    """Return all that the bucket has under Dynamo's key, in Dynamo's format; None if it has nothing."""
    from torch._dynamo import pgo

    united: CodeState = defaultdict(pgo.CodeState)
    for key in _keys(client, cache_key):
        for entry in client.variants(NAMESPACE, key):
            _unite(united, entry.members[_MEMBER])
        if united:
            return encode(united)
    return None


def encode(state: CodeState) -> bytes | None:
    """Return what of `state` another process can use; equal states, equal bytes; None if empty."""
    from torch._dynamo import pgo

    portable: CodeState = defaultdict(pgo.CodeState)
    for code_id in sorted(filter(_is_portable, state), key=_identity):
        portable_id = replace(code_id, filename=PurePath(code_id.filename).name)
        for source, seen in sorted(state[code_id].automatic_dynamic.items()):
            portable[portable_id].automatic_dynamic[source] = _sizes(seen)
    if not portable:
        return None
    output = io.BytesIO()
    pickler = pickle.Pickler(output, protocol=4)
    # The memo goes by identity, which two processes do not share.
    pickler.fast = True
    pickler.dump(portable)
    return output.getvalue()


class Recorder:
    """Stores states as they grow: at pauses that double, and at exit.

    Dynamo saves its state after every frame; each would be one more variant to read for ever.
    """

    def __init__(self) -> None:
        self._latest: dict[str, CodeState] = {}
        self._pause = _FIRST_PAUSE_SECONDS
        self._due = 0.0

    def offer(self, cache_key: str, state: CodeState) -> None:
        """Take note of what Dynamo saved under a key."""
        if not self._due:
            atexit.register(self.flush)
        if self._latest.get(cache_key, state) is not state:
            self.flush()
        self._latest[cache_key] = state
        if time.monotonic() >= self._due:
            self.flush()
            self._due = time.monotonic() + self._pause
            self._pause *= 2

    @guarded
    def flush(self) -> None:
        """Store what was not stored yet."""
        latest, self._latest = self._latest, {}
        client = active_client()
        for cache_key, state in latest.items():
            if client and (content := encode(state)):
                client.put(NAMESPACE, cache_key, {_MEMBER: content})


recorder = Recorder()
"""One for the process: what Dynamo saves locally and what it saves remotely is the same."""


@guarded
def _unite(united: CodeState, content: bytes) -> None:
    for code_id, code in pickle.loads(content).items():  # noqa: S301
        sources = united[code_id].automatic_dynamic
        for source, sizes in code.automatic_dynamic.items():
            sources[source] |= sizes


def _keys(client: Client, cache_key: str) -> Iterator[str]:
    yield cache_key
    if cache_key.startswith(_MAST):
        # Dynamo itself carries a profile over to the scheduler's next job; rank and tag stay.
        suffix = cache_key.split(":", 3)[3:]
        for _, key in client.profile(NAMESPACE):
            if key.startswith(_MAST) and key.split(":", 3)[3:] == suffix:
                yield key


def _is_portable(code_id: Any) -> bool:
    closure = getattr(code_id, "closure_hash", None)
    return closure is None or closure in _STABLE_CLOSURES


def _identity(code_id: Any) -> tuple[str, int, str, int]:
    closure = getattr(code_id, "closure_hash", None)
    return code_id.file_hash, code_id.firstlineno, code_id.name, closure or 0


def _sizes(entry: Any) -> Any:
    """Return what was seen without what only steers the next compilation of the process that saw it."""
    return type(entry)(scalar=entry.scalar, size=entry.size, stride=entry.stride)
