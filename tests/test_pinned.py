"""What a process of a pinned run sees: one decision, whoever asks and whenever."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest

from s3cache import catalog, manifest, names, view
from s3cache import client as clients
from s3cache.agent import protocol
from s3cache.catalog import Reference
from s3cache.client import Client
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.machine import Machine, platform_tag
from s3cache.manifest import Result
from s3cache.pinned import VIEW_VARIABLE, Pinned
from s3cache.settings import Settings
from s3cache.tier import DiskTier
from s3cache.view import View
from tests.test_local import damage, inline

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


CATALOGS = "catalogs/job/linux-x86_64/"


def pinned(tier: DiskTier, agent: Agent) -> Pinned:
    return Pinned(tier, LocalEntries(tier, [CATALOGS], NO_KEYS), NAME, agent.ask)


def have(tier: DiskTier, *references: Reference) -> View:
    """Put a catalog of these on disk, and return their view."""
    tier.write(f"{CATALOGS}1", catalog.build(references, NO_KEYS))
    return View.of(references)


def picky(key: str, **requires: str) -> Reference:
    """Return a reference to a result that requires something."""
    built = manifest.inline(Result("ns", key, {"content": b"graph"}, requires=requires), {})
    assert built is not None
    return Reference(0, built)


def anything(requires: Mapping[str, str]) -> bool:
    return True


def see_what_is_given(given: View) -> View:
    return given


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


def test_a_view_that_is_damaged_on_disk_is_asked_for_and_written_down_again(
    tier: DiskTier, tmp_path: Path
) -> None:
    tier.write(NAME, view.encode(FIRST))
    damage(tmp_path, NAME)
    assert pinned(tier, Agent(FIRST)).view() == FIRST
    assert pinned(tier, Agent()).view() == FIRST


def test_a_catalog_that_came_before_the_decision_is_looked_into(tier: DiskTier) -> None:
    entries = LocalEntries(tier, [CATALOGS], NO_KEYS)

    def ask(request: protocol.Request) -> protocol.Reply:
        have(tier, Reference(0, inline()))
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
    mine = have(tier, Reference(0, inline()))
    tier.write(NAME, view.encode(mine))
    agent = Agent()
    rank, started_before, given = pinned(tier, agent), pinned(tier, agent), []

    def settle(mine: View) -> View:
        given.append(mine)
        return SECOND

    rank.agree(settle, anything)
    assert given == [mine]
    assert rank.view() == SECOND
    (told,) = agent.asked
    assert told == protocol.Agreed(view.encode(SECOND))
    # Though the agent has not answered.
    assert started_before.view() == pinned(tier, Agent()).view() == SECOND


@pytest.mark.parametrize("threads", ["8", "16"])
def test_a_rank_agrees_to_nothing_that_it_cannot_use(tier: DiskTier, threads: str) -> None:
    """Nor to what it knows nothing of: another rank might use it."""
    plain = Reference(0, inline(key="plain"))
    of = {number: picky(number, threads=number) for number in ("8", "16")}
    seen = have(tier, plain, *of.values(), picky("unknown", gpu="H100")).marks
    gone = View.of([Reference(0, inline(key="gone"))]).marks
    machine = Machine()
    machine.learn("threads", lambda: threads)
    rank = pinned(tier, Agent(View(seen | gone)))
    rank.agree(see_what_is_given, machine.meets)
    assert rank.view() == View.of([plain, of[threads]])


def test_what_is_found_out_before_the_ranks_agree_may_be_seen(tier: DiskTier) -> None:
    rank = pinned(tier, Agent(have(tier, Reference(0, inline()))))

    def meets(requires: Mapping[str, str]) -> bool:
        assert rank.view()
        return True

    rank.agree(lambda mine: View(), meets)
    assert rank.view() == View()


def test_what_was_agreed_on_and_is_gone_is_nothing(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VIEW_VARIABLE, "views/gone")
    assert pinned(tier, Agent(FIRST)).view() == View()


def test_ranks_that_cannot_agree_see_nothing(tier: DiskTier) -> None:
    rank = pinned(tier, Agent(FIRST))
    assert rank.view() == FIRST

    def settle(mine: View) -> View:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        rank.agree(settle, anything)
    assert rank.view() == View()


def test_a_rank_that_cannot_find_out_what_it_can_use_sees_nothing(tier: DiskTier) -> None:
    def meets(requires: Mapping[str, str]) -> bool:
        raise RuntimeError

    mine = have(tier, Reference(0, inline()))
    rank = pinned(tier, Agent(mine))
    assert rank.view() == mine
    with pytest.raises(RuntimeError):
        rank.agree(see_what_is_given, meets)
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
        client._tier.write(name, view.encode(View.of(references)))
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
    client._tier.write("views/second", view.encode(View.of([second])))
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
    agree_on(client, Reference(0, inline(key="seen")))
    assert client.get("ns", "seen")


def agree_on(client: Client, *references: Reference, unknown: Collection[str] = ()) -> None:
    """Let a rank have these in its profile, and all others agree to what it can use."""
    prefix, _ = names.catalog_prefixes("job", platform_tag())
    client._tier.write(f"{prefix}1", catalog.build(references, NO_KEYS))
    client.agree(see_what_is_given, unknown)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The number of threads that this process has, to be changed."""
    machine, now = Machine(), ["8"]
    machine.learn("threads", lambda: now[0])
    monkeypatch.setattr(clients, "machine", machine)
    return now


def test_what_the_ranks_agreed_on_is_used_though_a_fact_changes_later(
    new_client: NewClient, agent: SilentAgent, threads: list[str]
) -> None:
    """Another rank, whose fact stays, uses it."""
    client = new_client("of 8", "of 16")
    agree_on(client, picky("of 8", threads="8"), picky("of 16", threads="16"))
    threads[0] = "16"
    assert client.get("ns", "of 8")
    assert client.get("ns", "of 16") is None
    assert agent.asked == [protocol.Agreed(view.encode(View.of([picky("of 8")])))]


def test_what_requires_something_that_is_not_to_be_found_out_yet_is_not_agreed_on(
    new_client: NewClient, threads: list[str]
) -> None:
    def ask() -> str:
        raise AssertionError

    clients.machine.learn("gpu", ask)
    client = new_client("tuned", "of 8")
    agree_on(client, picky("tuned", gpu="H100"), picky("of 8", threads="8"), unknown={"gpu"})
    assert client.get("ns", "of 8")
    assert client.get("ns", "tuned") is None


def test_without_a_pin_a_requirement_is_asked_each_time(new_client: NewClient, threads: list[str]) -> None:
    client = new_client(pin=False)
    reference = picky("of 8", threads="8")
    client._tier.write(reference.name, manifest.encode(reference.manifest, NO_KEYS))
    assert client.get("ns", "of 8")
    threads[0] = "16"
    assert client.get("ns", "of 8") is None
