"""The ledger keeps events when somebody asked for them, and not too many."""

import pytest

from s3cache import ledger
from s3cache.ledger import Event, Ledger


def test_ledger_keeps_events_when_somebody_asked() -> None:
    counts = Ledger()
    with counts.timed("look-up", "before"):
        pass
    assert counts.events is None
    counts.events = []
    with counts.request("GET", "name") as asked:
        asked.bytes = 7
    with pytest.raises(LookupError), counts.timed("look-up", "fails"):
        raise LookupError
    first, second = counts.events
    assert (first.kind, first.name, first.cause, first.bytes, first.outcome) == (
        "GET",
        "name",
        "look-up",
        7,
        "",
    )
    assert (second.name, second.outcome) == ("fails", "LookupError")
    assert first.start <= first.end <= second.start <= second.end


def test_ledger_counts_the_events_that_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_EVENTS", 3)
    counts = Ledger()
    counts.events = []
    for number in range(5):
        counts.keep(Event("GET", "name", number, number))
    assert len(counts.events) == 3
    assert counts.events_left_out == 2
