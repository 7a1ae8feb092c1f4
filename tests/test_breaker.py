"""The breaker: when it opens, what it lets through, and how it closes."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from s3cache.concurrency import for_each
from s3cache.errors import (
    BucketAbsent,
    Busy,
    CredentialsAbsent,
    Forbidden,
    ObjectAbsent,
    StoreError,
    Unreachable,
    WrongRegion,
)
from s3cache.stores import breaker as breakers
from s3cache.stores.breaker import (
    COOLDOWN_SECONDS,
    IN_A_ROW,
    LONGEST_COOLDOWN_SECONDS,
    RECENT,
    BreakerStore,
    Direction,
)
from tests.memory import MemoryStore
from tests.wrappers import FaultyStore, RecordingStore

pytestmark = pytest.mark.anyio

FAILURES = [Unreachable, BucketAbsent, CredentialsAbsent, WrongRegion, Busy, Forbidden]


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

    async def failed(self, error: StoreError, method: str = "get") -> None:
        """Let one request fail with `error`."""
        self.faulty.fail(method, error)
        with pytest.raises(type(error), match=str(error)):
            await REQUESTS[method](self)

    async def opened(self, error: StoreError, method: str = "get") -> None:
        """Let requests fail with `error` until no more are let through."""
        for _ in range(IN_A_ROW):
            await self.failed(error, method)
        self.recording.requests.clear()


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(breakers, "_JITTER", 0.0)
    return Setup()


REQUESTS: dict[str, Callable[[Setup], Awaitable[object]]] = {
    "get": lambda setup: setup.breaker.get("there"),
    "list": lambda setup: setup.list(),
    "create": lambda setup: setup.breaker.create(f"new {setup.now}", b""),
    "delete": lambda setup: setup.breaker.delete("there"),
}
DIRECTIONS: dict[str, Direction] = {"get": "read", "list": "list", "create": "write", "delete": "delete"}


@pytest.mark.parametrize("request_kind", REQUESTS)
@pytest.mark.parametrize("error", FAILURES)
async def test_a_store_that_fails_several_times_in_a_row_is_left_alone(
    setup: Setup, error: type[StoreError], request_kind: str
) -> None:
    await setup.opened(error("why"), request_kind)
    for _ in range(3):
        with pytest.raises(error, match="why"):
            await REQUESTS[request_kind](setup)
    assert setup.recording.requests == []


@pytest.mark.parametrize("request_kind", REQUESTS)
async def test_reading_listing_writing_and_deleting_are_apart(setup: Setup, request_kind: str) -> None:
    await setup.opened(Forbidden("why"), request_kind)
    for other, direction in DIRECTIONS.items():
        if other == request_kind:
            assert str(setup.breaker.failure(direction)) == "why"
        else:
            await REQUESTS[other](setup)
            assert setup.breaker.failure(direction) is None


async def test_failures_with_an_answer_between_them_do_not_open_it(setup: Setup) -> None:
    for _ in range(3 * IN_A_ROW):
        for _ in range(IN_A_ROW - 1):
            await setup.failed(Unreachable("why"))
        for _ in range(IN_A_ROW):
            assert await setup.breaker.get("there") == b"content"


async def test_failures_in_half_of_the_last_requests_open_it(setup: Setup) -> None:
    for _ in range(RECENT // 2):
        await setup.failed(Unreachable("why"))
        assert setup.breaker.failure("read") is None
        await setup.breaker.get("there")
    await setup.failed(Unreachable("why"))
    assert setup.breaker.failure("read") is not None


async def test_an_absent_object_is_an_answer(setup: Setup) -> None:
    for _ in range(2):
        for _ in range(IN_A_ROW - 1):
            await setup.failed(Unreachable("why"))
        with pytest.raises(ObjectAbsent):
            await setup.breaker.get("absent")
    assert setup.breaker.failure("read") is None


async def test_after_the_cooldown_a_probe_that_succeeds_closes_it(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS - 0.001
    with pytest.raises(Unreachable):
        await setup.breaker.get("there")
    setup.now += 0.001
    for _ in range(3):
        assert await setup.breaker.get("there") == b"content"
    assert setup.breaker.failure("read") is None


async def test_a_probe_that_finds_nothing_closes_it(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    for _ in range(3):
        with pytest.raises(ObjectAbsent):
            await setup.breaker.get("absent")
    assert setup.breaker.failure("read") is None


async def test_each_probe_that_fails_doubles_the_cooldown_up_to_a_bound(setup: Setup) -> None:
    await setup.opened(Unreachable("first"))
    cooldown = COOLDOWN_SECONDS
    for _ in range(8):
        setup.now += cooldown
        await setup.failed(Unreachable("again"))
        cooldown = min(2 * cooldown, LONGEST_COOLDOWN_SECONDS)
        setup.now += cooldown - 0.001
        with pytest.raises(Unreachable, match="again"):
            await setup.breaker.get("there")
        setup.now -= cooldown - 0.001
    assert cooldown == LONGEST_COOLDOWN_SECONDS
    assert len(setup.recording.requests) == 8


async def test_once_it_has_closed_the_cooldown_begins_small(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    for _ in range(5):
        setup.now += LONGEST_COOLDOWN_SECONDS
        await setup.failed(Unreachable("why"))
    setup.now += LONGEST_COOLDOWN_SECONDS
    await setup.breaker.get("there")
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    assert await setup.breaker.get("there") == b"content"


async def test_breakers_of_many_machines_do_not_probe_at_one_moment() -> None:
    retry_at = set()
    for _ in range(20):
        setup = Setup()
        await setup.opened(Unreachable("why"))
        retry_at.add(setup.breaker._circuits["read"]._retry_at - setup.now)
    assert len(retry_at) == 20
    assert all(0.7 * COOLDOWN_SECONDS < seconds < 1.3 * COOLDOWN_SECONDS for seconds in retry_at)


@pytest.mark.parametrize("is_healed", [True, False], ids=["healed", "still failing"])
async def test_half_open_one_request_probes_and_the_others_wait_for_it(
    setup: Setup, is_healed: bool
) -> None:
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
        assert len(setup.recording.requests) == 1
        assert outcomes == []
        if not is_healed:
            setup.faulty.fail("get", Unreachable("why"))
        gate.set()
    assert outcomes == [b"content" if is_healed else None] * 5
    assert len(setup.recording.requests) == (5 if is_healed else 1)


async def test_requests_that_are_made_together_do_not_cancel_the_probe_among_them(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS

    async def get(name: str) -> None:
        await setup.breaker.get(name)

    await for_each(["there"] * 5, get)
    assert setup.breaker.failure("read") is None


async def test_a_probe_that_is_cancelled_leaves_it_to_the_next(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    setup.recording.close_gate()
    with anyio.move_on_after(0.01):
        await setup.breaker.get("there")
    setup.recording.close_gate().set()
    assert await setup.breaker.get("there") == b"content"


async def test_who_waits_for_a_probe_that_is_cancelled_is_the_next_one(setup: Setup) -> None:
    await setup.opened(Unreachable("why"))
    setup.now += COOLDOWN_SECONDS
    gate = setup.recording.close_gate()
    scope = anyio.CancelScope()

    async def probe() -> None:
        with scope:
            await setup.breaker.get("there")

    async with anyio.create_task_group() as group:
        group.start_soon(probe)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(setup.breaker.get, "there")
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert len(setup.recording.requests) == 2
        gate.set()
    assert setup.breaker.failure("read") is None


async def test_it_knows_for_how_long_there_was_no_answer(setup: Setup) -> None:
    assert setup.breaker.silence() == 0
    gate = setup.recording.close_gate()
    async with anyio.create_task_group() as group:
        group.start_soon(setup.breaker.get, "there")
        await anyio.wait_all_tasks_blocked()
        setup.now += 5
        assert setup.breaker.silence() == 5
        gate.set()
    setup.now += 5
    assert setup.breaker.silence() == 0


async def test_a_request_that_was_given_up_is_not_silence_when_the_next_is_made(setup: Setup) -> None:
    setup.recording.close_gate()
    with anyio.move_on_after(0.01):
        await setup.breaker.get("there")
    setup.now += 3600
    gate = setup.recording.close_gate()
    async with anyio.create_task_group() as group:
        group.start_soon(setup.breaker.get, "there")
        await anyio.wait_all_tasks_blocked()
        assert setup.breaker.silence() == 0
        gate.set()


async def test_what_it_refuses_is_not_kept_in_memory(setup: Setup) -> None:
    await setup.opened(Unreachable("why"), "create")
    for _ in range(20):
        with pytest.raises(Unreachable) as refused:
            await setup.breaker.create("new", bytes(100))
    depth = 0
    traceback = refused.value.__traceback__
    while traceback:
        depth += 1
        traceback = traceback.tb_next
    assert depth < 10
