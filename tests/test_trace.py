"""The page of a trace: every event where it belongs, hostile names as text, nothing from elsewhere."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from s3cache.ledger import Cause, Event
from s3cache.trace import IDLE_SECONDS, WIDTH, Axis, render, round_trips

ORIGIN = 1000.0
HOSTILE = """<script>alert(1)</script>"onload='x'&{{ 7 * 7 }}"""


def event(
    kind: str,
    start: float,
    end: float,
    name: str = "name",
    cause: Cause | None = None,
    size: int = 0,
    outcome: str = "",
) -> Event:
    return Event(kind, name, ORIGIN + start, ORIGIN + end, cause, size, outcome)


class Page(HTMLParser):
    """A page's elements: their names, attributes and the text directly in them."""

    VOID = ("meta", "line")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.elements[self._open[-1]][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [" ".join(text.split()) for _, text in self.all(tag)]


def page(*events: Event, title: str = "train.py", facts: Sequence[str] = (), left_out: int = 0) -> Page:
    return Page(render(title, facts, events, left_out, ORIGIN))


def test_no_events_are_a_page_too() -> None:
    drawn = page()
    assert drawn.all("rect") == []
    assert drawn.texts("h1") == ["train.py"]
    assert drawn.texts("text") == ["0.0 s", "Processes", "Hits", "Prefetch", "Look-ups", "Requests"]


def test_bars_say_what_they_are() -> None:
    drawn = page(
        event("process", 0.1, 0.1, "4711 connects"),
        event("GET", 0.2, 0.45, "packs/ab bytes=0-1999", "prefetch", 2000),
        event("look-up", 0.3, 0.4, "fx-graph key 0", "look-up", outcome="absent"),
    )
    assert drawn.texts("title")[1:] == [
        "process 4711 connects 0.0 ms",
        "look-up fx-graph key 0 100.0 ms absent",
        "GET packs/ab bytes=0-1999 2.0 kB 250.0 ms",
    ]


def test_what_was_prefetched_has_another_colour_than_what_was_asked_for() -> None:
    drawn = page(
        event("GET", 0, 1, cause="prefetch"),
        event("GET", 1, 2, cause="look-up"),
        event("PUT", 2, 3, cause="upload"),
        event("process", 0, 0),
    )
    drawn_as = [bar["class"] for bar, _ in drawn.all("rect")]
    assert drawn_as == ["process", "prefetch", "look-up", "upload"]
    style = drawn.all("style")[0][1]
    fills = [re.search(rf"\.{name} {{ fill: (.+?);", style) for name in drawn_as]
    assert len({fill[1] for fill in fills if fill}) == 4


def test_bars_lie_on_the_axis_and_beside_each_other() -> None:
    drawn = page(event("GET", 0, 2), event("GET", 1, 3), event("GET", 2, 4))
    bars = [bar for bar, _ in drawn.all("rect")]
    assert [(float(bar["x"] or 0), float(bar["width"] or 0)) for bar in bars] == [
        (0, WIDTH / 2),
        (WIDTH / 4, WIDTH / 2),
        (WIDTH / 2, WIDTH / 2),
    ]
    assert bars[0]["y"] == bars[2]["y"] != bars[1]["y"]


def test_axis_counts_seconds_from_the_start_of_the_launcher() -> None:
    axis = Axis([event("GET", 0.5, 4)], ORIGIN)
    ticks = list(axis.ticks())
    assert [seconds for _, seconds in ticks] == pytest.approx([0.5 * number for number in range(9)])
    assert [x for x, _ in ticks] == pytest.approx([0.5 * number * WIDTH / 4 for number in range(9)])
    assert min(right[0] - left[0] for left, right in pairwise(ticks)) >= 59


def test_long_times_without_events_are_left_out() -> None:
    hour = 3600.0
    axis = Axis([event("GET", 0, 1), event("PUT", hour, hour + 1)], ORIGIN)
    assert axis.x(ORIGIN + 1) < axis.x(ORIGIN + hour) < axis.x(ORIGIN + hour + 1) < axis.width < 2 * WIDTH
    assert (axis.x(ORIGIN + hour), hour) in axis.ticks()
    whole = Axis([event("GET", 0, 1), event("GET", 1 + IDLE_SECONDS, 2 + IDLE_SECONDS)], ORIGIN)
    assert whole.x(ORIGIN + 1 + IDLE_SECONDS) == pytest.approx(
        WIDTH * (1 + IDLE_SECONDS) / (2 + IDLE_SECONDS)
    )


def test_what_began_before_the_launcher_lies_on_the_chart() -> None:
    axis = Axis([event("GET", -3, -2), event("GET", 0, 1)], ORIGIN)
    assert axis.x(ORIGIN - 3) == 0
    assert next(axis.ticks()) == (0, -3)


def test_totals_stand_on_top() -> None:
    drawn = page(
        event("GET", 0, 1, cause="prefetch", size=1_500_000),
        event("GET", 1, 2, cause="look-up", size=500_000),
        event("LIST", 0, 0.5, cause="prefetch"),
        event("PUT", 3, 4, cause="upload", size=7),
        event("look-up", 1, 2.25),
    )
    cells = drawn.texts("td")
    assert cells == ["2", "2.0 MB", "1", "0 Bytes", "1", "7 Bytes"]
    assert drawn.texts("p")[0] == (
        "Requests of which each began when the one before had ended, uploads apart: 2 round trips. "
        "Look-ups that waited for the agent: 1, for 1.250 s in all."
    )


def test_round_trips_are_those_that_follow_each_other() -> None:
    assert round_trips([]) == 0
    together = [event("GET", 0, 1)] * 5
    assert round_trips(together) == 1
    assert round_trips([*together, event("GET", 1, 2), event("GET", 0.5, 4), event("GET", 2.5, 3)]) == 3


def test_hostile_names_are_text() -> None:
    drawn = page(event("GET", 0, 1, HOSTILE, outcome=HOSTILE), event(HOSTILE, 0, 1), title=HOSTILE)
    assert drawn.texts("h1") == drawn.texts("title")[:1] == [HOSTILE]
    assert drawn.texts("title")[1:] == [f"GET {HOSTILE} 1000.0 ms {HOSTILE}", f"{HOSTILE} name 1000.0 ms"]
    assert drawn.all("script") == []
    assert not any(name.startswith("on") for _, attributes, _ in drawn.elements for name in attributes)


def test_page_needs_nothing_else() -> None:
    text = render("train.py", [], [event("GET", 0, 1)], 0, ORIGIN)
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"\b(src|href)=|@import|url\(", text)


def test_page_says_how_many_events_it_lacks() -> None:
    assert "17 events more" in " ".join(page(left_out=17).texts("p"))
    assert "events more" not in " ".join(page().texts("p"))


def test_what_failed_is_red_and_in_a_table_and_what_was_absent_is_not() -> None:
    drawn = page(
        event("GET", 0, 1, "packs/gone", "prefetch", outcome="ObjectAbsent"),
        event("LIST", 1, 2, HOSTILE, "prefetch", outcome="Forbidden"),
        event("look-up", 2, 3, "key", outcome="absent"),
        event("look-up", 3, 4, "key", outcome="unavailable"),
    )
    assert sorted(str(of["class"]) for of, _ in drawn.all("rect")) == [
        "failed",
        "failed",
        "look-up",
        "prefetch",
    ]
    assert drawn.texts("td")[-6:] == ["Forbidden", HOSTILE, "1.0 s", "unavailable", "key", "3.0 s"]


def test_a_run_is_summed_up_in_words() -> None:
    assert page(facts=["1 hit", HOSTILE]).texts("p")[:2] == ["1 hit", HOSTILE]


def test_what_a_process_found_on_disk_has_a_row() -> None:
    drawn = page(event("hit", 0, 1, "fx-graph key 0"))
    assert [of["class"] for of, _ in drawn.all("rect")] == ["hit"]
