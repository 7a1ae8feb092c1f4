"""The job's side: how long it waits, and what it tells its agent."""

import time
from pathlib import Path

import pytest

from s3cache import manifest as manifests
from s3cache import names
from s3cache.agent import protocol
from s3cache.client import Client
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Result
from s3cache.settings import Settings

ANSWER_SECONDS = 0.1


class SlowAgent:
    """Answers every look-up, late."""

    def __init__(self) -> None:
        self.asked = 0
        self.said: list[protocol.Request] = []

    def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        self.asked += 1
        time.sleep(min(ANSWER_SECONDS, seconds))
        return protocol.Found("absent") if seconds >= ANSWER_SECONDS else None

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


def test_a_result_that_is_offered_again_is_one_hit(client: Client, agent: SlowAgent) -> None:
    manifest = manifests.inline(Result("fx-graph", "key", {"content": b"graph"}), {})
    assert manifest is not None
    client._tier.write(names.manifest_name("fx-graph", "key", 0), manifests.encode(manifest, NO_KEYS))
    for _ in range(2):
        (entry,) = client.variants("fx-graph", "key")
        assert entry.members == {"content": b"graph"}
    assert sum(isinstance(message, protocol.Hit) for message in agent.said) == 1
