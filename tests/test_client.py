"""The job's side: how long it waits, and what it tells its agent."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from s3cache import client as clients
from s3cache import manifest as manifests
from s3cache import names, view
from s3cache.agent import protocol
from s3cache.agent.address import agent_directory
from s3cache.client import Client
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Result
from s3cache.settings import Settings
from s3cache.view import View

ANSWER_SECONDS = 0.1


class SlowAgent:
    """Answers every look-up, late, and with the same word."""

    def __init__(self) -> None:
        self.asked = 0
        self.said: list[protocol.Request] = []
        self.seconds = ANSWER_SECONDS
        self.status: protocol.Status = "absent"

    def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        self.asked += 1
        time.sleep(min(self.seconds, seconds))
        return protocol.Found(self.status) if seconds >= self.seconds else None

    def say(self, message: protocol.Request) -> None:
        self.said.append(message)


@pytest.fixture
def agent() -> SlowAgent:
    return SlowAgent()


@pytest.fixture
def client(tmp_path: Path, agent: SlowAgent) -> Client:
    settings = Settings(
        url="s3://bucket", directory=tmp_path, disk_limit=1 << 20, job="job", deadline_seconds=0.35
    )
    client = Client(settings)
    client._agent = agent  # type: ignore[assignment]
    return client


def test_a_slow_bucket_is_waited_for_until_the_deadline(
    client: Client, agent: SlowAgent, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    assert [client.get("fx-graph", f"key {number}") for number in range(50)] == [None] * 50
    assert 0.35 <= time.monotonic() - started < 2.0
    # Fewer where the machine is busy and each answer takes longer.
    assert 1 <= agent.asked <= 4
    (record,) = caplog.records
    assert "S3CACHE_DEADLINE" in record.message


class SilentAgent:
    """Answers nothing, but at the end of the process, if it knows by then what is wrong."""

    is_open = False

    def __init__(self, cause: str | None) -> None:
        self._cause = cause

    def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        is_asked_why = isinstance(request, protocol.Flush) and self._cause is not None
        time.sleep(0.0 if is_asked_why else seconds)
        return protocol.Flushed(0, b"", self._cause) if is_asked_why else None

    def say(self, message: protocol.Request) -> None: ...

    def start_no_more(self) -> None: ...


@pytest.fixture
def unanswered(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(clients, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(clients, "COOLDOWN_SECONDS", 0.0)
    return Client(msgspec.structs.replace(client.settings, deadline_seconds=120.0))


@pytest.mark.parametrize(
    ("cause", "said"), [("no credentials", "no credentials"), (None, "did not answer in time")]
)
def test_a_job_whose_agent_did_not_answer_is_told_why_when_it_ends(
    unanswered: Client, cause: str | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    unanswered._agent = SilentAgent(cause)  # type: ignore[assignment]
    unanswered.get("fx-graph", "key")
    assert caplog.records == []
    unanswered._at_exit()
    (record,) = caplog.records
    assert said in record.message


class BusyAgent(SilentAgent):
    """Says in time that nothing came, and takes longer to say why."""

    is_open = True

    def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        if not isinstance(request, protocol.Flush):
            return protocol.Found("unavailable")
        time.sleep(min(0.5, seconds))
        return super().request(request, seconds) if seconds > 0.5 else None


def test_a_job_for_which_nothing_came_in_time_is_told_why_when_it_ends(
    unanswered: Client, caplog: pytest.LogCaptureFixture
) -> None:
    unanswered._agent = BusyAgent("no credentials")  # type: ignore[assignment]
    unanswered.get("fx-graph", "key")
    unanswered._at_exit()
    (record,) = caplog.records
    assert "no credentials" in record.message


@pytest.mark.parametrize("log", ["", "earlier\nno credentials\n"])
def test_a_job_for_which_nothing_came_is_told_what_its_agent_wrote_last_if_that_cannot_say_why_in_time(
    unanswered: Client, caplog: pytest.LogCaptureFixture, log: str
) -> None:
    folder = agent_directory(unanswered.settings)
    folder.mkdir(parents=True)
    (folder / "log").write_text(log)

    class MuteAgent(BusyAgent):
        def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
            return None if isinstance(request, protocol.Flush) else super().request(request, seconds)

    unanswered._agent = MuteAgent(None)  # type: ignore[assignment]
    unanswered.get("fx-graph", "key")
    unanswered._at_exit()
    (record,) = caplog.records
    assert record.message.endswith(f"{folder}/log may say why{': no credentials' if log else ''}")


def test_a_job_that_was_given_results_after_one_that_was_late_is_told_nothing(
    unanswered: Client, caplog: pytest.LogCaptureFixture
) -> None:
    statuses: list[protocol.Status] = ["unavailable", "ready"]

    class LeavingAgent(BusyAgent):
        def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
            return protocol.Found(statuses.pop(0)) if statuses else None

    unanswered._agent = LeavingAgent(None)  # type: ignore[assignment]
    for number in range(2):
        unanswered.get("fx-graph", f"key {number}")
    unanswered._at_exit()
    assert statuses == []
    assert caplog.records == []


def test_a_job_whose_agent_does_not_answer_twice_is_told_at_once(
    unanswered: Client, caplog: pytest.LogCaptureFixture
) -> None:
    unanswered._agent = SilentAgent(None)  # type: ignore[assignment]
    for number in range(2):
        unanswered.get("fx-graph", f"key {number}")
    unanswered._at_exit()
    (record,) = caplog.records
    assert "did not answer in time" in record.message


@pytest.fixture
def patient(tmp_path: Path, agent: SlowAgent, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that waits for a result for 0.5 s, and for 0.02 s at no cost."""
    monkeypatch.setattr(clients, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(clients, "PROMPT_SECONDS", 0.02)
    client = Client(Settings(url="s3://bucket", directory=tmp_path, disk_limit=1 << 20, job="job"))
    client._agent = agent  # type: ignore[assignment]
    return client


def seconds_of(client: Client, look_ups: int) -> float:
    started = time.monotonic()
    for number in range(look_ups):
        client.get("fx-graph", f"key {number}")
    return time.monotonic() - started


@pytest.mark.parametrize("status", ["absent", "unavailable"])
def test_a_slow_bucket_that_gives_nothing_is_not_waited_for_long(
    patient: Client, agent: SlowAgent, status: protocol.Status
) -> None:
    agent.status = status
    assert seconds_of(patient, 100) < 1.5
    assert 1 < agent.asked <= 7


def test_a_slow_bucket_that_gives_results_is_waited_for(patient: Client, agent: SlowAgent) -> None:
    agent.status = "ready"
    seconds_of(patient, 12)
    assert agent.asked == 12


def test_a_prompt_bucket_that_has_nothing_is_asked_every_time(patient: Client, agent: SlowAgent) -> None:
    agent.seconds = 0.0
    seconds_of(patient, 500)
    assert agent.asked == 500


def test_failures_among_prompt_answers_cost_a_bounded_share_of_the_time(
    patient: Client, agent: SlowAgent
) -> None:
    waited = 0.0
    for _ in range(20):
        agent.status, agent.seconds = "absent", 0.0
        seconds_of(patient, 2)
        agent.status, agent.seconds = "unavailable", ANSWER_SECONDS
        waited += seconds_of(patient, 1)
    # What 40 prompt answers gave back, and the patience.
    assert waited < 0.5 + 40 * 0.02 + ANSWER_SECONDS


def test_a_result_that_is_offered_again_is_one_hit(client: Client, agent: SlowAgent) -> None:
    manifest = manifests.inline(Result("fx-graph", "key", {"content": b"graph"}), {})
    assert manifest is not None
    client._tier.write(names.manifest_name("fx-graph", "key", 0), manifests.encode(manifest, NO_KEYS))
    for _ in range(2):
        (entry,) = client.variants("fx-graph", "key")
        assert entry.members == {"content": b"graph"}
    assert sum(isinstance(message, protocol.Hit) for message in agent.said) == 1


# Hours, by a clock that only waiting moves.

Answer = Callable[[protocol.Lookup, float], protocol.Status | None]


class Clock:
    """Stands in for `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class FarAgent:
    """Answers look-ups by a rule, which may let the time pass that it takes; None is no answer."""

    def __init__(self, clock: Clock) -> None:
        self.waited = 0.0
        self.asked = 0
        self.answer: Answer = self.says_nothing
        self._clock = clock

    def says_nothing(self, lookup: protocol.Lookup, seconds: float) -> None:
        self._clock.now += seconds

    def has_a_dead_bucket(self, lookup: protocol.Lookup, seconds: float) -> protocol.Status:
        self._clock.now = max(self._clock.now, lookup.deadline + 0.001)
        return "unavailable"

    def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        assert isinstance(request, protocol.Lookup)
        began = self._clock.now
        self.asked += 1
        status = self.answer(request, seconds)
        self.waited += self._clock.now - began
        return protocol.Found(status) if status else None

    def say(self, message: protocol.Request) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(clients, "time", clock)
    return clock


@pytest.fixture
def far(clock: Clock) -> FarAgent:
    return FarAgent(clock)


@pytest.fixture
def waiting(tmp_path: Path, far: FarAgent) -> Client:
    client = Client(Settings(url="s3://bucket", directory=tmp_path, disk_limit=1 << 20, job="job"))
    client._agent = far  # type: ignore[assignment]
    return client


def lay_down(client: Client, lookup: protocol.Lookup) -> None:
    manifest = manifests.inline(Result(lookup.namespace, lookup.key, {"content": b"graph"}), {})
    assert manifest is not None
    name = names.manifest_name(lookup.namespace, lookup.key, lookup.slot)
    client._tier.write(name, manifests.encode(manifest, NO_KEYS))


def first_hit(client: Client, clock: Clock, seconds: float, step: float = 1.0) -> float | None:
    """Look for something else at every step; return after how many seconds there is a hit, if there is."""
    began = clock.now
    while clock.now < began + seconds:
        clock.now += step
        if client.get("fx-graph", f"key {clock.now}"):
            return clock.now - began
    return None


@pytest.mark.parametrize("gives_nothing", [FarAgent.says_nothing, FarAgent.has_a_dead_bucket])
def test_a_week_of_look_ups_waits_five_seconds_at_most_for_what_gives_nothing(
    waiting: Client, far: FarAgent, clock: Clock, gives_nothing: Callable[..., protocol.Status | None]
) -> None:
    far.answer = lambda lookup, seconds: gives_nothing(far, lookup, seconds)
    assert first_hit(waiting, clock, 7 * 86_400, step=30) is None
    assert 2 < far.waited < 5


def test_a_bucket_that_was_dead_for_an_hour_and_answers_in_its_own_time_is_used_within_seconds(
    waiting: Client, far: FarAgent, clock: Clock
) -> None:
    far.answer = far.has_a_dead_bucket
    assert first_hit(waiting, clock, 3600) is None

    def answer(lookup: protocol.Lookup, seconds: float) -> protocol.Status:
        lay_down(waiting, lookup)
        if clock.now + 0.25 > lookup.deadline:
            return far.has_a_dead_bucket(lookup, seconds)
        clock.now += 0.25
        return "ready"

    far.answer = answer
    assert first_hit(waiting, clock, 15)
    asked = far.asked
    assert all(waiting.get("fx-graph", f"later {number}") for number in range(9))
    assert far.asked == asked + 9


def test_a_result_that_was_made_here_is_no_sign_of_a_bucket_that_comes_back(
    waiting: Client, far: FarAgent, clock: Clock
) -> None:
    def answer(lookup: protocol.Lookup, seconds: float) -> protocol.Status:
        lay_down(waiting, lookup)
        name = names.manifest_name(lookup.namespace, lookup.key, lookup.slot)
        data = waiting._tier.read(name)
        assert data is not None
        waiting._tier.write(names.unsent_name(name), data)
        waiting._tier.remove(name)
        return far.has_a_dead_bucket(lookup, seconds)

    far.answer = answer
    assert first_hit(waiting, clock, 3600) is None
    assert far.waited < 3


def test_a_bucket_whose_results_all_come_late_is_waited_for_less_and_less(
    waiting: Client, far: FarAgent, clock: Clock
) -> None:
    def answer(lookup: protocol.Lookup, seconds: float) -> protocol.Status:
        lay_down(waiting, lookup)
        return far.has_a_dead_bucket(lookup, seconds)

    far.answer = answer
    assert first_hit(waiting, clock, 3600) is None
    first = far.waited
    assert first_hit(waiting, clock, 3600) is None
    assert far.waited - first < 0.5 < first < 10


def test_an_agent_that_comes_back_is_asked_again(waiting: Client, far: FarAgent, clock: Clock) -> None:
    assert first_hit(waiting, clock, 60) is None

    def answer(lookup: protocol.Lookup, seconds: float) -> protocol.Status:
        lay_down(waiting, lookup)
        return "ready"

    far.answer = answer
    assert first_hit(waiting, clock, 90)


# A pinned run.


@pytest.mark.parametrize(("prefetch", "is_seen"), [(60.0, True), (200.0, False)])
def test_a_prefetch_is_waited_for_until_the_deadline_and_costs_no_patience(
    tmp_path: Path, clock: Clock, prefetch: float, is_seen: bool
) -> None:
    """The agent says each second that what is seen is not decided yet."""
    decided = view.encode(View(frozenset([b"12345678"])))
    over = clock.now + prefetch

    class Agent(FarAgent):
        def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
            assert isinstance(request, protocol.ViewOf)
            clock.now += min(seconds, 1.0)
            return protocol.ViewIs(decided if clock.now >= over else None)

    settings = Settings(url="s3://bucket", directory=tmp_path, disk_limit=1 << 20, job="job", pin=True)
    client = Client(settings)
    client._agent = Agent(clock)  # type: ignore[assignment]
    began = clock.now
    assert client._pinned
    assert client._pinned.view() == (view.decode(decided) if is_seen else View())
    assert clock.now - began == pytest.approx(min(prefetch, settings.deadline_seconds), abs=1.0)
    assert client._patience == clients.PATIENCE_SECONDS
