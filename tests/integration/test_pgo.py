"""Dynamo's profile: how what several machines saw is encoded, united and recorded."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from torch._dynamo import pgo

from s3cache.integration.pytorch import code_states
from s3cache.manifest import Entry


class Recorded:
    """A client that remembers what was put, as variants of one key."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    def put(self, namespace: str, key: str, members: dict[str, bytes]) -> None:
        self.contents.append(members["content"])

    def variants(self, namespace: str, key: str) -> Iterator[Entry]:
        for slot, content in enumerate(self.contents):
            yield Entry(namespace, key, slot, "", {}, {"content": content})


def state(*seen: tuple[str, tuple[int, ...]], filename: str = "/a/model.py", **fields: Any) -> Any:
    states: defaultdict[Any, Any] = defaultdict(pgo.CodeState)
    for source, size in seen:
        code_id = pgo.CodeId(filename, 1, "forward", "crc", **fields)
        states[code_id].automatic_dynamic[source] |= pgo.FrameStateSizeEntry.make_size(size)
    return states


def test_what_several_machines_saw_is_united() -> None:
    client: Any = Recorded()
    for seen in [("x", (2, 3))], [("x", (2, 4)), ("y", (7,))]:
        client.contents.append(code_states.encode(state(*seen)))
    united = code_states.stored(client, "key")
    assert united == code_states.encode(state(("y", (7,)), ("x", (2, 3)), ("x", (2, 9))))


def test_a_variant_that_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    client: Any = Recorded()
    client.contents = [b"not a pickle", code_states.encode(state(("x", (2,))))]
    assert code_states.stored(client, "key") == client.contents[1]
    assert "_unite failed" in caplog.text


def test_machines_that_saw_the_same_write_the_same() -> None:
    one = state(("x", (2,)), ("y", (3,)), filename="/home/one/model.py")
    other = state(("y", (3,)), ("x", (2,)), filename="/home/other/model.py")
    assert code_states.encode(one) == code_states.encode(other)


@pytest.mark.skipif(
    "closure_hash" not in pgo.CodeId.__dataclass_fields__, reason="this torch does not tell closures apart"
)
def test_what_another_process_cannot_find_is_not_written() -> None:
    states = state(("x", (2,)))
    expected = code_states.encode(states)
    states |= state(("x", (2,)), closure_hash=hash("of a function"))
    assert code_states.encode(states) == expected


def test_code_without_sizes_is_not_written() -> None:
    states = state(("x", (2,)))
    expected = code_states.encode(states)
    states[pgo.CodeId("/a/empty.py", 1, "forward", "crc2")]
    assert code_states.encode(states) == expected


def test_a_growing_state_is_stored_at_pauses_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Recorded()
    now = 1000.0
    monkeypatch.setattr(code_states, "active_client", lambda: client)
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("atexit.register", lambda function: None)
    recorder = code_states.Recorder()
    growing = state()
    for size in range(100):
        growing |= state(("x", (size,)), filename=f"{size}.py") if size % 2 else {}
        growing[pgo.CodeId("", size, "f", "")].automatic_dynamic["x"] = pgo.FrameStateSizeEntry(size)
        recorder.offer("key", growing)
        now += 1.0
    assert 4 <= len(client.contents) <= 6
    recorder.flush()
    assert client.contents[-1] == code_states.encode(growing)
    another = state(("x", (1,)))
    recorder.offer("key", growing)
    recorder.offer("key", another)
    recorder.flush()
    assert client.contents[-1] == code_states.encode(another)
