"""The job's side: how long it waits, and what it tells its agent."""

import time
from pathlib import Path

import pytest

from s3cache import client as clients
from s3cache import manifest as manifests
from s3cache import names
from s3cache.agent import protocol
from s3cache.client import Client
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Result
from s3cache.settings import Settings

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
    assert 3 <= agent.asked <= 7


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
