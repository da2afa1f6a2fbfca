"""The charts of pages: what each shows, and how it is laid out on a sheet.

Four kinds: spans of time or amount on lanes, stacked columns, lines and points over two axes, and a
grid of shares. Values are SI; an axis says in which unit it shows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from hardware_profiles.units import UNITS, Dimension
from reports.drawing import (
    Anchor,
    Box,
    Dot,
    Hue,
    Label,
    Line,
    Mark,
    Picture,
    Sheet,
    Words,
    text_width,
)
from reports.palette import USE

WIDTH = 860.0
"""Of every sheet; pages scale it to the room there is."""
_LEGEND_ROW = 20.0
_TEXT = 6.0
"""Room between a text and what it belongs to."""
_TICKS = 6
_BINS = 20
_ALIGNED = 92.0


@dataclass(frozen=True, slots=True)
class ChartAxis:
    """One axis of a chart."""

    title: str
    unit: str = ""
    """As shown; "%" shows shares of one."""
    per: float = 1.0
    """SI value of one of its units."""
    log: bool = False
    low: float | None = None
    """Where it begins, SI; None for where the data do."""
    high: float | None = None

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float) -> str:
        """A value in the unit of the axis."""
        shown = value / self.per
        if self.unit == "%":
            return f"{shown:.1f}%"
        number = f"{shown:,.0f}" if abs(shown) >= 1000 else f"{shown:.4g}"
        return f"{number} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Reference:
    """A value to hold others against: a capacity, a limit that was asked for."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Span:
    """A bar of a lane from start to end, SI."""

    lane: int
    start: float
    end: float
    hue: Hue
    tip: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Spans:
    """Bars on lanes: a timeline, parts of a sum, intervals."""

    title: str
    caption: str
    x: ChartAxis
    lanes: tuple[str, ...]
    spans: tuple[Span, ...]
    legend: tuple[tuple[str, Hue], ...] = ()
    notes: tuple[str, ...] = ()
    """[lane] a text at the right of its last bar."""
    marks: tuple[tuple[int, float, str, str], ...] = ()
    """(lane, value, hue, what it is): points on lanes."""
    references: tuple[Reference, ...] = ()
    lane_height: float = 22.0
    zoom: str = ""
    """Charts of one name zoom together; empty for one that does not."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that stack their parts."""

    title: str
    caption: str
    y: ChartAxis
    of: str
    """What a column is: "rank"."""
    names: tuple[str, ...]
    parts: tuple[tuple[str, Hue, tuple[float, ...]], ...]
    """(name, hue, [column] value), lowest first."""
    references: tuple[Reference, ...] = ()
    height: float = 300.0


@dataclass(frozen=True, slots=True)
class Curve:
    """One line or cloud of points."""

    name: str
    hue: Hue
    x: Sequence[float]
    y: Sequence[float | None]
    """A line breaks where there is no value."""
    line: bool = True
    dots: bool = False
    tips: Sequence[str] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """Curve over two axes."""

    title: str
    caption: str
    x: ChartAxis
    y: ChartAxis
    series: tuple[Curve, ...]
    across: tuple[Reference, ...] = ()
    """Values of y."""
    upright: tuple[Reference, ...] = ()
    """Values of x."""
    height: float = 280.0
    zoom: str = ""


@dataclass(frozen=True, slots=True)
class Heat:
    """Shares from 0 to 1 of the cells of a grid."""

    title: str
    caption: str
    x: str
    """What the columns are."""
    rows: tuple[str, ...]
    cells: Sequence[Sequence[float | None]] = field(repr=False)


Chart: TypeAlias = Spans | Columns | Lines | Heat


def shown_in(title: str, dimension: Dimension, largest: float, **more: float | bool) -> ChartAxis:
    """An axis in the largest unit in which the largest value is at least one."""
    names: Mapping[str, tuple[str, ...]] = {
        "time": ("d", "h", "s", "ms", "us", "ns"),
        "data": ("TiB", "GiB", "MiB", "KiB", "B"),
        "bandwidth": ("TB/s", "GB/s", "MB/s", "B/s"),
    }
    units = UNITS[dimension]
    shown = names[dimension]
    unit = next((u for u in shown if abs(largest) >= units[u]), shown[-1])
    return ChartAxis(title, unit, units[unit], **more)  # type: ignore[arg-type]


def share_axis(title: str, **more: float | bool) -> ChartAxis:
    """An axis of shares of one, shown in percent."""
    return ChartAxis(title, "%", 0.01, **more)  # type: ignore[arg-type]


def draw(chart: Chart) -> Sheet:
    """Lay a chart out."""
    match chart:
        case Spans():
            return _spans(chart)
        case Columns():
            return _columns(chart)
        case Lines():
            return _lines(chart)
        case Heat():
            return _heat(chart)


# -- scales ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a value lies on a sheet."""

    low: float
    high: float
    start: float
    """Pixel of the low end."""
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _scale(axis: ChartAxis, values: Iterable[float], start: float, end: float) -> _Scale:
    known = [value for value in values if not axis.log or value > 0]
    low = axis.low if axis.low is not None else min(known, default=0.0)
    high = axis.high if axis.high is not None else max(known, default=1.0)
    if axis.log:
        low = low if low > 0 else min((v for v in known if v > 0), default=1.0)
        if high <= low:
            low, high = low / 2, low * 2
        return _Scale(low, high, start, end, True)
    if axis.low is None and low > 0:
        low = 0.0
    if high <= low:
        high = low + (axis.per if low == 0 else abs(low))
    return _Scale(low, high, start, end, False)


def ticks(low: float, high: float, *, log: bool, most: int = _TICKS) -> list[float]:
    """Round values from low to high, about as many as asked for."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        every = max(1, (last - first) // most)
        found = [m * 10.0**e for e in range(first, last + 1, every) for m in steps]
        return [value for value in found if low * 0.999 <= value <= high * 1.001]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def binned(values: Sequence[float], axis: ChartAxis) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """How many values lie in each of some bins with round ends: (lower ends as text, counts)."""
    low, high = min(values) / axis.per, max(values) / axis.per
    ends = ticks(low, high if high > low else low + 1.0, log=False, most=_BINS)
    step = ends[1] - ends[0]
    first = math.floor(low / step + 1e-9)
    last = max(math.floor(value / axis.per / step + 1e-9) for value in values)
    counts = [0.0] * (last - first + 1)
    for value in values:
        counts[math.floor(value / axis.per / step + 1e-9) - first] += 1
    return tuple(tick_text(n * step) for n in range(first, last + 1)), tuple(counts)


def tick_text(value: float) -> str:
    """A round value, thousands and millions short."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def _axis_ticks(axis: ChartAxis, scale: _Scale, *, most: int = _TICKS) -> list[tuple[float, str]]:
    shown = ticks(scale.low / axis.per, scale.high / axis.per, log=axis.log, most=most)
    return [(scale(value * axis.per), tick_text(value)) for value in shown]


# -- parts that charts share -----------------------------------------------------------------------


def _legend(entries: Sequence[tuple[str, Hue]], left: float) -> tuple[list[Mark], float]:
    """Names with their hues in rows, and the height that they take."""
    marks: list[Mark] = []
    x, y = left, 15.0
    for name, hue in entries:
        width = 12 + _TEXT + text_width(name) + 16
        if x + width > WIDTH and x > left:
            x, y = left, y + _LEGEND_ROW
        marks += [Box(x, y - 9.5, 11, 11, hue), Words(x + 12 + _TEXT, y, name, hue="ink")]
        x += width
    return marks, (y + 9.0 if entries else 6.0)


def _bottom(
    axis: ChartAxis, scale: _Scale, upper: float, lower: float, *, rules: bool = True
) -> Iterator[Mark]:
    """The horizontal axis under a plot: rules, ticks and title."""
    for x, text in _axis_ticks(axis, scale, most=8):
        if rules:
            yield Line(((x, upper), (x, lower)), "grid")
        yield Words(x, lower + 17, text, "middle")
    yield Words((scale.start + scale.end) / 2, lower + 36, axis.label, "middle")


def _side(axis: ChartAxis, scale: _Scale, left: float, right: float) -> Iterator[Mark]:
    """The vertical axis at the left of a plot; its title stands upright."""
    for y, text in _axis_ticks(axis, scale, most=5):
        yield Line(((left, y), (right, y)), "grid")
        yield Words(left - _TEXT, y + 4, text, "end")
    yield Words(14, (scale.start + scale.end) / 2, axis.label, "middle", upright=True)


def _side_width(axis: ChartAxis, scale: _Scale) -> float:
    texts = [text for _, text in _axis_ticks(axis, scale, most=5)]
    return 26 + max((text_width(text) for text in texts), default=0.0) + _TEXT


def _aligned(zoom: str) -> float:
    """Where charts begin that zoom together, so that one time lies below the other."""
    return _ALIGNED if zoom else 0.0


def _across(
    references: Sequence[Reference], scale: _Scale, left: float, right: float
) -> Iterator[Mark]:
    for reference in references:
        y = scale(reference.value)
        yield Line(((left, y), (right, y)), "ink", 1.2, dashed=True)


def _across_words(references: Sequence[Reference], scale: _Scale, right: float) -> Iterator[Mark]:
    for reference in references:
        yield Words(right - 4, scale(reference.value) - 5, reference.label, "end", "ink", 11.5)


# -- the four kinds --------------------------------------------------------------------------------


def _spans(chart: Spans) -> Sheet:
    marks, upper = _legend(chart.legend, 4.0)
    left = 10 + max((text_width(name) for name in chart.lanes), default=0.0) + _TEXT
    left = max(left, _aligned(chart.zoom))
    note = max((text_width(text, 11.5) for text in chart.notes), default=0.0)
    right = WIDTH - 16 - (note + _TEXT if note else 0.0)
    lower = upper + len(chart.lanes) * chart.lane_height + 4
    ends = [end for span in chart.spans for end in (span.start, span.end)]
    ends += [value for _, value, _, _ in chart.marks]
    ends += [reference.value for reference in chart.references]
    scale = _scale(chart.x, ends, left, right)
    frame: list[Mark] = [*marks]
    # A chart that zooms draws its ticks anew; its rules would not follow.
    frame += _bottom(chart.x, scale, upper, lower, rules=not chart.zoom)
    middle = [upper + (place + 0.5) * chart.lane_height + 2 for place in range(len(chart.lanes))]
    frame += [Words(left - _TEXT, y + 4, name, "end", "ink")
              for y, name in zip(middle, chart.lanes, strict=True)]  # fmt: skip
    last = [0.0] * len(chart.lanes)
    plot: list[Mark] = []
    thick = chart.lane_height - 5
    for span in sorted(chart.spans, key=lambda one: one.hue):
        start, end = sorted((scale(span.start), scale(span.end)))
        last[span.lane] = max(last[span.lane], end)
        gap = min(0.7, 0.15 * (end - start))
        y = middle[span.lane] - thick / 2
        plot.append(Box(start, y, max(end - start - gap, 0.05), thick, span.hue, span.tip))
    plot += [Dot(scale(value), middle[lane], hue, 4.5, tip)
             for lane, value, hue, tip in chart.marks]  # fmt: skip
    for lane, value, _, _ in chart.marks:
        last[lane] = max(last[lane], scale(value) + 5)
    plot += [Line(((scale(r.value), upper), (scale(r.value), lower)), "ink", 1.2, dashed=True)
             for r in chart.references]  # fmt: skip
    frame += [
        Label(scale(span.start), scale(span.end), middle[span.lane] + 4, span.label, span.hue)
        for span in chart.spans
        if span.label
    ]
    frame += [
        Words(last[lane] + _TEXT, middle[lane] + 4, text, hue="ink", size=11.5)
        for lane, text in enumerate(chart.notes)
        if text
    ]
    frame += [Words(scale(r.value), upper - 2, r.label, "middle", "ink", 11.5)
              for r in chart.references if r.label]  # fmt: skip
    area = (left, upper, right - left, lower - upper)
    shown = (scale.low / chart.x.per, scale.high / chart.x.per)
    return Sheet(WIDTH, lower + 46, tuple(frame), tuple(plot), area, chart.zoom, shown)


def _columns(chart: Columns) -> Sheet:
    legend = [(name, hue) for name, hue, _ in chart.parts] if len(chart.parts) > 1 else []
    marks, upper = _legend(legend, 4.0)
    lower = upper + chart.height
    totals = [sum(values) for values in zip(*(v for _, _, v in chart.parts), strict=True)]
    reach = [*totals, *(reference.value for reference in chart.references)]
    top = 1.08 * max(reach, default=1.0)
    scale = _scale(chart.y, [0.0, top], lower, upper + 8)
    left, right = _side_width(chart.y, scale), WIDTH - 10
    frame: list[Mark] = [*marks, *_side(chart.y, scale, left, right)]
    step = (right - left) / max(len(chart.names), 1)
    every = max(1, math.ceil((max(map(text_width, chart.names), default=0.0) + 8) / step))
    plot: list[Mark] = []
    for place, name in enumerate(chart.names):
        x = left + (place + 0.5) * step
        if place % every == 0:
            frame.append(Words(x, lower + 17, name, "middle"))
    base = [0.0] * len(chart.names)
    for part, hue, values in chart.parts:
        for place, value in enumerate(values):
            if value > 0:
                y = scale(base[place] + value)
                height = scale(base[place]) - y
                tip = f"{chart.of} {chart.names[place]}, {part}: {chart.y.text(value)}"
                width = 0.76 * step
                x = left + (place + 0.5) * step - width / 2
                plot.append(Box(x, y, width, max(height - 0.7, 0.3), hue, tip))
                base[place] += value
    frame.append(Words((left + right) / 2, lower + 36, chart.of, "middle"))
    plot += _across(chart.references, scale, left, right)
    frame += _across_words(chart.references, scale, right)
    area = (left, upper, right - left, lower - upper)
    return Sheet(WIDTH, lower + 46, tuple(frame), tuple(plot), area)


def _lines(chart: Lines) -> Sheet:
    named = [(one.name, one.hue) for one in chart.series if one.name]
    marks, upper = _legend(named if len(chart.series) > 1 else [], 4.0)
    upper += 18 if chart.upright else 8
    lower = upper + chart.height
    ys = [y for one in chart.series for y in one.y if y is not None]
    ys += [reference.value for reference in chart.across]
    top = max(ys, default=1.0)
    if chart.y.high is None and not chart.y.log:
        ys.append(1.06 * top)
    dotted = any(one.dots for one in chart.series) and not chart.zoom
    # Room for the half of a point that lies beyond its place.
    up = _scale(chart.y, ys, lower - 5 * (dotted and chart.y.log), upper + 5 * dotted)
    left, right = max(_side_width(chart.y, up), _aligned(chart.zoom)), WIDTH - 16
    xs = [x for one in chart.series for x in one.x]
    xs += [reference.value for reference in chart.upright]
    along = _scale(chart.x, xs, left + 5 * dotted, right - 5 * dotted)
    frame: list[Mark] = [*marks, *_side(chart.y, up, left, right)]
    frame += _bottom(chart.x, along, upper, lower, rules=not chart.zoom)
    plot: list[Mark] = [*_across(chart.across, up, left, right)]
    plot += [Line(((along(r.value), upper), (along(r.value), lower)), "ink", 1.2, dashed=True)
             for r in chart.upright]  # fmt: skip
    for one in chart.series:
        plot += _series(one, chart, along, up)
    frame += _across_words(chart.across, up, right)
    for r in chart.upright:
        # A word that would run over the right end stands on the other side of its line.
        x = along(r.value)
        over = x + 4 + text_width(r.label, 11.5) > right
        anchor: Anchor = "end" if over else "start"
        frame.append(Words(x, upper - 4, r.label, anchor, "ink", 11.5))
    area = (left, upper, right - left, lower - upper)
    shown = (along.low / chart.x.per, along.high / chart.x.per)
    return Sheet(WIDTH, lower + 46, tuple(frame), tuple(plot), area, chart.zoom, shown)


def _series(one: Curve, chart: Lines, along: _Scale, up: _Scale) -> Iterator[Mark]:
    places: list[tuple[float, float] | None] = [
        (along(x), up(y)) if y is not None and (y > 0 or not up.log) and (x > 0 or not along.log)
        else None
        for x, y in zip(one.x, one.y, strict=True)
    ]  # fmt: skip
    if one.line:
        part: list[tuple[float, float]] = []
        for place in [*places, None]:
            if place is not None:
                part.append(place)
            elif part:
                yield Line(tuple(part), one.hue, 1.8, one.dashed)
                part = []
    if one.dots:
        for number, (place, x, y) in enumerate(zip(places, one.x, one.y, strict=True)):
            if place is not None and y is not None:
                told = one.tips[number] if one.tips else _told(one.name, chart, x, y)
                yield Dot(place[0], place[1], one.hue, 3.2, told)


def _told(name: str, chart: Lines, x: float, y: float) -> str:
    of = f"{name}: " if name else ""
    return f"{of}{chart.y.text(y)} at {chart.x.text(x)}"


def _heat(chart: Heat) -> Sheet:
    cell = 14.0 if len(chart.rows) <= 40 else 8.0
    every = math.ceil(13 / cell)
    columns = len(chart.cells[0]) if len(chart.cells) else 0
    left = 10 + max((text_width(name, 11.5) for name in chart.rows), default=0.0) + _TEXT
    right, upper = WIDTH - 10, 26.0
    lower = upper + cell * len(chart.rows)
    colours = tuple(
        tuple("" if value is None else USE[_step(value)] for value in row) for row in chart.cells
    )
    plot: list[Mark] = [Picture(left, upper, right - left, lower - upper, colours)]
    for place, (name, row) in enumerate(zip(chart.rows, chart.cells, strict=True)):
        known = [value for value in row if value is not None]
        if known:
            mean, most = sum(known) / len(known), max(known)
            tip = f"{name}: mean {mean:.1%}, most {most:.1%}"
            plot.append(Box(left, upper + place * cell, right - left, cell, "none", tip))
    frame: list[Mark] = [
        Words(left - _TEXT, upper + (place + 0.5) * cell + 4, name, "end", "ink", 11.5)
        for place, name in enumerate(chart.rows)
        if place % every == 0
    ]
    width = 18.0
    for step, colour in enumerate(USE):
        frame.append(Picture(left + step * width, 4, width, 11, ((colour,),)))
    frame.append(Words(left + len(USE) * width + _TEXT, 14, "use, from 0% to 100%", hue="ink"))
    for at in ticks(0, max(columns - 1, 1), log=False, most=8):
        if at == int(at) and at < columns:
            x = left + (at + 0.5) / columns * (right - left)
            frame.append(Words(x, lower + 15, f"{at:.0f}", "middle"))
    frame.append(Words((left + right) / 2, lower + 33, chart.x, "middle"))
    area = (left, upper, right - left, lower - upper)
    return Sheet(WIDTH, lower + 42, tuple(frame), tuple(plot), area)


def _step(share: float) -> int:
    return min(len(USE) - 1, max(0, round(share * (len(USE) - 1))))


def merged(spans: Sequence[Span], *, width: float, told: Callable[[int], str]) -> list[Span]:
    """Spans with neighbours of one lane and hue drawn as one where both are too thin to be seen.

    Args:
        width: SI length below which neighbours are drawn together.
        told: how many are drawn together -> what is shown of them.
    """
    found: list[Span] = []
    open_at: dict[tuple[int, Hue], tuple[int, int]] = {}
    for span in sorted(spans, key=lambda one: (one.lane, one.start)):
        key = (span.lane, span.hue)
        place, count = open_at.get(key, (-1, 0))
        before = found[place] if count else None
        if before is not None and span.end - before.start < width and span.end - span.start < width:
            joined = Span(span.lane, before.start, max(span.end, before.end), span.hue,
                          told(count + 1))  # fmt: skip
            found[place], open_at[key] = joined, (place, count + 1)
            continue
        open_at[key] = (len(found), 1)
        found.append(span)
    return found
