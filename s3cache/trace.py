"""A page that shows when a start fetched what, and what waited for what. Pure."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import NamedTuple

from s3cache.ledger import Event

WIDTH = 1200.0
"""Pixels of the chart; one of more than 24 s is wider."""
IDLE_SECONDS = 5.0
"""A longer time without any event is left out."""
LANE = 12
"""Pixels from one bar to the next below it."""
_WIDTH_OF_A_SECOND = 50.0
_WIDTH_OF_A_BREAK = 60.0
_WIDTH_OF_A_LABEL = 60.0
_WIDTH_OF_A_MOMENT = 3.0
_STEPS = (0.1, 0.2, 0.5, 1.0, 2.0)
_ROWS = {"process": "Processes", "hit": "Hits", "prefetch": "Prefetch", "look-up": "Look-ups"}
_FINE = {"", "ready", "absent", "ObjectAbsent", "Present"}
"""Outcomes that are no failures: a look-up may find nothing, a write that it is done already."""


class Bar(NamedTuple):
    """An event and its place in its row."""

    event: Event
    x: float
    width: float
    lane: int


class Row(NamedTuple):
    """Events of one sort, and how many lanes they need so that none covers another."""

    name: str
    bars: list[Bar]
    lanes: int


class Axis:
    """Where moments lie on the chart, without the long times in which nothing happened."""

    def __init__(self, events: Iterable[Event], origin: float) -> None:
        self._origin = origin
        self._stretches = [(origin, origin)]
        for event in sorted(events, key=lambda event: event.start):
            start, end = self._stretches[-1]
            if event.start - end > IDLE_SECONDS:
                self._stretches.append((event.start, event.end))
            else:
                self._stretches[-1] = min(start, event.start), max(end, event.end)
        busy = sum(end - start for start, end in self._stretches)
        self._scale = max(WIDTH / max(busy, 1.0), _WIDTH_OF_A_SECOND)
        self._lefts = [0.0]
        for start, end in self._stretches:
            self._lefts.append(self._lefts[-1] + (end - start) * self._scale + _WIDTH_OF_A_BREAK)

    @property
    def width(self) -> float:
        """Pixels up to the end of the last event, and room for a label."""
        return max(self._lefts[-1], WIDTH)

    def x(self, moment: float) -> float:
        """Return where a moment of an event lies."""
        number = bisect_right(self._stretches, moment, key=lambda stretch: stretch[0]) - 1
        return self._lefts[number] + (moment - self._stretches[number][0]) * self._scale

    def ticks(self) -> Iterator[tuple[float, float]]:
        """Yield pixels and seconds: of the begin of each stretch, and of round numbers in it."""
        step = next(step for step in _STEPS if step * self._scale > _WIDTH_OF_A_LABEL)
        for start, end in self._stretches:
            yield self.x(start), start - self._origin
            first = (start - self._origin + _WIDTH_OF_A_LABEL / self._scale) / step
            for number in range(math.ceil(first), math.floor((end - self._origin) / step) + 1):
                yield self.x(self._origin + number * step), number * step


def render(title: str, facts: Sequence[str], events: Sequence[Event], left_out: int, origin: float) -> str:
    """Return the page, with `facts` of the run in words.

    Its axis counts from `origin`, and `left_out` events more were not kept.
    """
    import jinja2

    requests = [event for event in events if event.kind not in _ROWS]
    look_ups = [event for event in events if event.kind == "look-up"]
    axis = Axis(events, origin)
    template = resources.files("s3cache").joinpath("trace.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return page.from_string(template).render(
        title=title,
        facts=facts,
        failures=[event for event in events if event.outcome not in _FINE],
        fine=_FINE,
        axis=axis,
        rows=list(_rows(events, axis)),
        lane=LANE,
        idle_seconds=IDLE_SECONDS,
        kinds={
            kind: [e for e in requests if e.kind == kind] for kind in sorted({e.kind for e in requests})
        },
        look_ups=look_ups,
        round_trips=round_trips([event for event in requests if event.cause != "upload"]),
        left_out=left_out,
        origin=origin,
    )


def round_trips(requests: Iterable[Event]) -> int:
    """Return the most requests of which each began when the one before had ended."""
    count, ended = 0, -math.inf
    for request in sorted(requests, key=lambda request: request.end):
        if request.start >= ended:
            count, ended = count + 1, request.end
    return count


def _rows(events: Iterable[Event], axis: Axis) -> Iterator[Row]:
    rows: dict[str, list[Event]] = {name: [] for name in (*_ROWS.values(), "Requests")}
    for event in sorted(events, key=lambda event: event.start):
        rows[_ROWS.get(event.kind, "Requests")].append(event)
    for name, of_row in rows.items():
        ends: list[float] = []
        bars: list[Bar] = []
        for event in of_row:
            x = axis.x(event.start)
            width = max(axis.x(event.end) - x, _WIDTH_OF_A_MOMENT)
            lane = next((number for number, end in enumerate(ends) if end <= x), len(ends))
            ends[lane : lane + 1] = [x + width]
            bars.append(Bar(event, x, width, lane))
        yield Row(name, bars, len(ends))
