"""The breaker: when it opens, what it lets through, and how it closes."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from s3cache.errors import (
    BucketAbsent,
    CredentialsAbsent,
    Forbidden,
    ObjectAbsent,
    StoreError,
    Unreachable,
    WrongRegion,
)
from s3cache.stores.breaker import COOLDOWN_SECONDS, BreakerStore
from s3cache.stores.memory import MemoryStore
from tests.wrappers import FaultyStore, RecordingStore

pytestmark = pytest.mark.anyio

OPENING = [Unreachable, BucketAbsent, CredentialsAbsent, WrongRegion]


class Setup:
    """A breaker in front of a store that can be made to fail, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.memory = MemoryStore()
        self.memory.objects["there"] = b"content"
        self.faulty = FaultyStore(self.memory)
        self.recording = RecordingStore(self.faulty)
        self.breaker = BreakerStore(self.recording, clock=lambda: self.now)

    async def list(self) -> list[str]:
        return [listed.name async for listed in self.breaker.list("")]

    async def opened(self, error: StoreError, method: str = "get") -> None:
        """Let one request fail with `error`."""
        self.faulty.fail(method, error)
        with pytest.raises(type(error)):
            await REQUESTS[method](self)
        self.recording.requests.clear()


@pytest.fixture
def setup() -> Setup:
    return Setup()


REQUESTS: dict[str, Callable[[Setup], Awaitable[object]]] = {
    "get": lambda setup: setup.breaker.get("there"),
    "list": lambda setup: setup.list(),
    "create": lambda setup: setup.breaker.create("new", b""),
    "delete": lambda setup: setup.breaker.delete("there"),
}


@pytest.mark.parametrize("request_kind", REQUESTS)
@pytest.mark.parametrize("error", OPENING)
async def test_a_store_that_does_not_answer_is_left_alone(
    setup: Setup, error: type[StoreError], request_kind: str
) -> None:
    await setup.opened(error("why"))
    for _ in range(3):
        with pytest.raises(error, match="why"):
            await REQUESTS[request_kind](setup)
    assert setup.recording.requests == []


@pytest.mark.parametrize("request_kind", REQUESTS)
async def test_any_request_may_open_it(setup: Setup, request_kind: str) -> None:
    setup.faulty.fail(request_kind, Unreachable("why"))
    with pytest.raises(Unreachable):
        await REQUESTS[request_kind](setup)
    with pytest.raises(Unreachable):
        await setup.breaker.get("there")


async def test_an_absent_object_does_not_open_it(setup: Setup) -> None:
    with pytest.raises(ObjectAbsent):
        await setup.breaker.get("absent")
    assert setup.breaker.failure("read") is None
    assert await setup.breaker.get("there") == b"content"


async def test_a_bucket_one_may_only_read_is_read(setup: Setup) -> None:
    await setup.opened(Forbidden("why"), "create")
    assert await setup.breaker.get("there") == b"content"
    assert await setup.list() == ["there"]


async def test_a_bucket_in_which_one_may_not_delete_is_written(setup: Setup) -> None:
    await setup.opened(Forbidden("why"), "delete")
    assert await setup.breaker.create("new", b"")
    with pytest.raises(Forbidden, match="why"):
        await setup.breaker.delete("there")
    assert setup.recording.asked("DELETE") == []


async def test_a_bucket_one_may_only_write_is_written(setup: Setup) -> None:
    await setup.opened(Forbidden("why"), "get")
    assert await setup.breaker.create("new", b"")
    with pytest.raises(Forbidden, match="why"):
        await setup.list()


async def test_it_says_what_keeps_it_open(setup: Setup) -> None:
    assert setup.breaker.failure("read") is None
    await setup.opened(Forbidden("no writing"), "create")
    assert setup.breaker.failure("read") is None
    assert str(setup.breaker.failure("write")) == "no writing"
    await setup.opened(Unreachable("gone"))
    assert str(setup.breaker.failure("read")) == str(setup.breaker.failure("write")) == "gone"


async def test_after_the_cooldown_a_probe_that_succeeds_closes_it(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS - 0.001
    with pytest.raises(Unreachable):
        await setup.breaker.get("there")
    setup.now += 0.001
    for _ in range(3):
        assert await setup.breaker.get("there") == b"content"
    assert setup.breaker.failure("read") is None


async def test_an_absent_object_is_an_answer_and_closes_it(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    for _ in range(3):
        with pytest.raises(ObjectAbsent):
            await setup.breaker.get("absent")
    assert setup.breaker.failure("read") is None


async def test_after_the_cooldown_a_probe_that_fails_opens_it_again(setup: Setup) -> None:
    await setup.opened(Unreachable("first"))
    setup.now += COOLDOWN_SECONDS
    setup.faulty.fail("get", Unreachable("second"))
    for _ in range(3):
        with pytest.raises(Unreachable, match="second"):
            await setup.breaker.get("there")
    assert len(setup.recording.requests) == 1
    setup.now += COOLDOWN_SECONDS
    assert await setup.breaker.get("there") == b"content"


async def test_half_open_one_request_probes_and_the_others_fail_at_once(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    gate = setup.recording.close_gate()
    outcomes: list[object] = []

    async def get() -> None:
        try:
            outcomes.append(await setup.breaker.get("there"))
        except Unreachable:
            outcomes.append(None)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        assert outcomes == [None] * 4
        gate.set()
    assert outcomes == [None] * 4 + [b"content"]
    assert len(setup.recording.requests) == 1


async def test_a_probe_that_is_cancelled_leaves_the_next_to_a_later_time(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    setup.recording.close_gate()
    with anyio.move_on_after(0.01):
        await setup.breaker.get("there")
    setup.recording.close_gate().set()
    with pytest.raises(Unreachable):
        await setup.breaker.get("there")
    setup.now += COOLDOWN_SECONDS
    assert await setup.breaker.get("there") == b"content"


async def test_reading_and_writing_close_apart(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    await setup.breaker.get("there")
    assert setup.breaker.failure("write") is not None
    assert await setup.breaker.create("new", b"")
    assert setup.breaker.failure("write") is None


async def test_what_it_refuses_is_not_kept_in_memory(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    for _ in range(20):
        with pytest.raises(Unreachable) as refused:
            await setup.breaker.create("new", bytes(100))
    depth = 0
    traceback = refused.value.__traceback__
    while traceback:
        depth += 1
        traceback = traceback.tb_next
    assert depth < 10
