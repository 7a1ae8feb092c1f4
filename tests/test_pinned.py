"""What a process of a pinned run sees: one decision, whoever asks and whenever."""

from collections.abc import Callable
from pathlib import Path

import pytest

from s3cache import catalog, manifest, names, view
from s3cache.agent import protocol
from s3cache.catalog import Reference
from s3cache.client import Client
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.pinned import VIEW_VARIABLE, Pinned
from s3cache.settings import Settings
from s3cache.tier import DiskTier
from s3cache.view import View
from tests.test_local import inline

NAME = names.view_name("job", "run")
FIRST, SECOND = View(frozenset([b"12345678"])), View(frozenset([b"abcdefgh"]))


class Agent:
    """Answers what it was told to, then nothing."""

    def __init__(self, *views: View | None) -> None:
        self.asked: list[protocol.Request] = []
        self._replies = [protocol.ViewIs(None if seen is None else view.encode(seen)) for seen in views]

    def ask(self, request: protocol.Request) -> protocol.Reply | None:
        self.asked.append(request)
        return self._replies.pop(0) if self._replies else None


@pytest.fixture
def tier(tmp_path: Path) -> DiskTier:
    return DiskTier(tmp_path, 1 << 20)


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", VIEW_VARIABLE):
        monkeypatch.setenv(name, "")


def pinned(tier: DiskTier, agent: Agent) -> Pinned:
    return Pinned(tier, LocalEntries(tier, [], NO_KEYS), NAME, agent.ask)


def test_what_is_written_down_is_seen_without_asking(tier: DiskTier) -> None:
    tier.write(NAME, view.encode(FIRST))
    agent = Agent(SECOND)
    assert pinned(tier, agent).view() == FIRST
    assert agent.asked == []


def test_the_agent_is_asked_until_it_has_decided(tier: DiskTier) -> None:
    agent = Agent(None, None, FIRST, SECOND)
    process = pinned(tier, agent)
    assert process.view() == process.view() == FIRST
    assert agent.asked == [protocol.ViewOf()] * 3


def test_who_waits_in_vain_decides_for_all_that_nothing_is_seen(tier: DiskTier) -> None:
    assert pinned(tier, Agent(None)).view() == View()
    assert pinned(tier, Agent(FIRST)).view() == View()


def test_who_waits_in_vain_sees_what_was_decided_meanwhile(tier: DiskTier) -> None:
    def ask(request: protocol.Request) -> None:
        tier.write(NAME, view.encode(FIRST))

    assert Pinned(tier, LocalEntries(tier, [], NO_KEYS), NAME, ask).view() == FIRST


def test_a_catalog_that_came_before_the_decision_is_looked_into(tier: DiskTier) -> None:
    prefix = "catalogs/job/linux-x86_64/"
    entries = LocalEntries(tier, [prefix], NO_KEYS)

    def ask(request: protocol.Request) -> protocol.Reply:
        tier.write(f"{prefix}1", catalog.build([Reference(0, inline())], NO_KEYS))
        return protocol.ViewIs(view.encode(FIRST))

    Pinned(tier, entries, NAME, ask).view()
    assert entries.manifest("ns", "key", 0) is not None


@pytest.mark.parametrize(
    ("ranks", "here", "is_decided_here"),
    [("", "", True), ("4", "4", True), ("4", "2", False), ("2", "", False), ("many", "1", True)],
)
def test_ranks_of_one_machine_need_not_agree(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, ranks: str, here: str, is_decided_here: bool
) -> None:
    monkeypatch.setenv("WORLD_SIZE", ranks)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert pinned(tier, Agent(FIRST)).view() == (FIRST if is_decided_here else None)


def test_what_was_agreed_on_is_seen_by_a_rank_and_by_what_it_starts(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    tier.write(NAME, view.encode(FIRST))
    agent = Agent()
    rank, started_before, given = pinned(tier, agent), pinned(tier, agent), []

    def settle(mine: View) -> View:
        given.append(mine)
        return SECOND

    rank.agree(settle)
    assert given == [FIRST]
    assert rank.view() == SECOND
    (told,) = agent.asked
    assert told == protocol.Agreed(view.encode(SECOND))
    tier.write(names.agreed_view_name(view.encode(SECOND)), view.encode(SECOND))
    assert started_before.view() == pinned(tier, Agent()).view() == SECOND


def test_what_was_agreed_on_and_is_gone_is_nothing(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VIEW_VARIABLE, "views/gone")
    assert pinned(tier, Agent(FIRST)).view() == View()


def test_ranks_that_cannot_agree_see_nothing(tier: DiskTier) -> None:
    rank = pinned(tier, Agent(FIRST))
    assert rank.view() == FIRST

    def settle(mine: View) -> View:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        rank.agree(settle)
    assert rank.view() == View()


# The client of a pinned run.


class SilentAgent:
    """Has nothing, and notes what it is asked and told."""

    def __init__(self) -> None:
        self.asked: list[protocol.Request] = []

    def request(self, request: protocol.Request, seconds: float) -> protocol.Reply:
        self.asked.append(request)
        return protocol.Found("absent")

    def say(self, message: protocol.Request) -> None: ...


@pytest.fixture
def agent() -> SilentAgent:
    return SilentAgent()


NewClient = Callable[..., Client]


@pytest.fixture
def new_client(tmp_path: Path, agent: SilentAgent) -> NewClient:
    def new(*seen: str, pin: bool = True) -> Client:
        """Return the client of a run that sees these keys."""
        settings = Settings(url="s3://bucket", directory=tmp_path, disk_limit=1 << 20, job="job", pin=pin)
        client = Client(settings)
        references = [Reference(0, inline(key=key)) for key in seen]
        name = names.view_name("job", client._agent.run)
        client._tier.write(name, view.encode(View.of(references, "")))
        client._agent = agent  # type: ignore[assignment]
        return client

    return new


def lay_down(client: Client, *keys: str) -> None:
    for key in keys:
        client._tier.write(names.manifest_name("ns", key, 0), manifest.encode(inline(key=key), NO_KEYS))


def test_only_what_is_in_the_view_is_a_hit(new_client: NewClient, agent: SilentAgent) -> None:
    client = new_client("seen")
    lay_down(client, "seen", "appeared")
    assert client.get("ns", "seen")
    assert client.get("ns", "appeared") is None
    assert client.get("ns", "absent") is None
    assert agent.asked == []


def test_what_vanished_from_the_disk_is_asked_for(new_client: NewClient, agent: SilentAgent) -> None:
    client = new_client("seen")
    assert client.get("ns", "seen") is None
    (asked,) = agent.asked
    assert isinstance(asked, protocol.Lookup)


def test_a_slot_behind_one_that_is_not_seen_is_a_hit(new_client: NewClient) -> None:
    client = new_client()
    second = Reference(1, inline())
    client._pinned = Pinned(client._tier, client._entries, "views/second", client._ask)
    client._tier.write("views/second", view.encode(View.of([second], "")))
    client._tier.write(second.name, manifest.encode(second.manifest, NO_KEYS))
    entry = client.get("ns", "key")
    assert entry is not None
    assert entry.slot == 1


def test_without_a_pin_all_is_seen(new_client: NewClient) -> None:
    client = new_client(pin=False)
    lay_down(client, "appeared")
    assert client.get("ns", "appeared")


def test_before_the_ranks_have_agreed_nothing_is_seen_and_that_is_said_once(
    new_client: NewClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    client = new_client("seen")
    lay_down(client, "seen")
    assert client.get("ns", "seen") is client.get("ns", "seen") is None
    (record,) = caplog.records
    assert "init_process_group" in record.message
    client.agree(lambda mine: mine)
    assert client.get("ns", "seen")
