"""Where charts draw what they are told."""

import pytest

from reports.charts import (
    WIDTH,
    ChartAxis,
    Columns,
    Curve,
    Heat,
    Lines,
    Reference,
    Span,
    Spans,
    binned,
    draw,
    merged,
    share_axis,
    shown_in,
    tick_text,
    ticks,
)
from reports.drawing import Box, Dot, Line, Picture, Words
from reports.palette import USE

MS = ChartAxis("time", "ms", 1e-3, low=0.0, high=0.2)


def of_kind(marks, kind):
    return [mark for mark in marks if isinstance(mark, kind)]


def texts(sheet):
    return [mark.text for mark in of_kind(sheet.frame, Words)]


def test_an_axis_shows_values_in_its_unit():
    assert shown_in("time", "time", 0.129).unit == "ms"
    assert shown_in("memory", "data", 5 * 2.0**30).text(2.0**31) == "2 GiB"
    assert share_axis("use").text(0.973) == "97.3%"
    assert ChartAxis("tokens", "tokens/s").text(14800.4) == "14,800 tokens/s"


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 19.3, log=False) == pytest.approx([0, 5, 10, 15])
    assert ticks(3.0, 3000.0, log=True) == [10.0, 100.0, 1000.0]
    assert ticks(10.0, 100.0, log=True) == [10.0, 20.0, 50.0, 100.0]
    assert [tick_text(v) for v in (0.25, 5.0, 15000.0, 2.5e6, 3e12)] == [
        "0.25", "5", "15,000", "2.5M", "3T",
    ]  # fmt: skip


def test_spans_lie_on_their_lanes_in_proportion_to_time():
    chart = Spans("t", "", MS, ("a", "b"),
                  (Span(0, 0.0, 0.1, "blue"), Span(1, 0.05, 0.15, "blue", "tip")))  # fmt: skip
    sheet = draw(chart)
    left, _, width, _ = sheet.area
    first, second = of_kind(sheet.plot, Box)
    assert first.x == left
    assert first.x + first.width == pytest.approx(left + width / 2 - 0.7)
    assert second.x == pytest.approx(left + width / 4)
    assert second.y - first.y == chart.lane_height
    assert "time (ms)" in texts(sheet)


def test_a_chart_that_zooms_says_its_ends_in_the_unit_shown():
    sheet = draw(Spans("t", "", MS, ("a",), (Span(0, 0.0, 0.1, "blue"),), zoom="step"))
    assert (sheet.zoom, sheet.ends) == ("step", (0.0, 200.0))


def test_columns_stack_to_their_sum_and_a_capacity_is_a_dashed_line():
    parts = (("one", "blue", (1.0, 2.0)), ("two", "orange", (3.0, 0.0)))
    sheet = draw(
        Columns("t", "", ChartAxis("y"), "rank", ("0", "1"), parts, (Reference(4.0, "cap"),))
    )
    boxes = of_kind(sheet.plot, Box)
    assert [box.tip for box in boxes] == ["rank 0, one: 1", "rank 1, one: 2", "rank 0, two: 3"]
    (line,) = of_kind(sheet.plot, Line)
    assert line.dashed
    top = min(box.y for box in boxes)
    assert line.points[0][1] == pytest.approx(top)
    assert boxes[1].x + boxes[1].width < WIDTH


def test_a_line_breaks_where_there_is_no_value():
    series = Curve("s", "blue", (0.0, 1.0, 2.0, 3.0), (1.0, None, 2.0, 3.0), dots=True)
    sheet = draw(
        Lines("t", "", ChartAxis("x"), ChartAxis("y"), (series,), across=(Reference(2.0, "SLO"),))
    )
    limit, *parts = of_kind(sheet.plot, Line)
    assert limit.dashed
    assert [len(part.points) for part in parts] == [1, 2]
    assert len(of_kind(sheet.plot, Dot)) == 3
    assert limit.points[0][1] == pytest.approx(parts[1].points[0][1])
    assert "SLO" in texts(sheet)


def test_zero_has_no_place_on_a_logarithmic_axis():
    series = Curve("s", "blue", (0.0, 1.0, 10.0), (1.0, 1.0, 1.0), line=False, dots=True)
    sheet = draw(Lines("t", "", ChartAxis("x", log=True), ChartAxis("y"), (series,)))
    left, _, width, _ = sheet.area
    assert [dot.x for dot in of_kind(sheet.plot, Dot)] == pytest.approx(
        [left + 5, left + width - 5]
    )


def test_an_idle_link_is_light_and_a_full_one_dark():
    sheet = draw(Heat("t", "", "cable", ("leaf0",), [[0.0, 1.0, None]]))
    (grid,) = of_kind(sheet.plot, Picture)
    assert grid.colours == ((USE[0], USE[-1], ""),)
    (row,) = of_kind(sheet.plot, Box)
    assert row.tip == "leaf0: mean 50.0%, most 100.0%"


def test_neighbours_too_thin_to_be_seen_are_drawn_as_one():
    spans = [Span(0, 0.0, 1.0, "blue"), Span(0, 1.0, 2.0, "blue"), Span(0, 2.0, 3.0, "red"),
             Span(0, 3.0, 20.0, "blue")]  # fmt: skip
    found = merged(spans, width=2.5, told=lambda count: f"{count} kernels")
    assert [(one.start, one.end, one.hue, one.tip) for one in found] == [
        (0.0, 2.0, "blue", "2 kernels"),
        (2.0, 3.0, "red", ""),
        (3.0, 20.0, "blue", ""),
    ]


def test_a_word_at_the_right_end_stands_before_its_line():
    chart = Lines("t", "", ChartAxis("x"), ChartAxis("y"),
                  (Curve("s", "blue", (0.0, 10.0), (1.0, 1.0)),),
                  upright=(Reference(1.0, "early"), Reference(9.9, "late")))  # fmt: skip
    words = {mark.text: mark for mark in of_kind(draw(chart).frame, Words)}
    assert (words["early"].anchor, words["late"].anchor) == ("start", "end")


def test_charts_that_zoom_together_have_their_axes_below_each_other():
    sheets = [
        draw(Lines("t", "", ChartAxis("x"), ChartAxis("y"),
                   (Curve("s", "blue", (0.0, 1.0), (0.0, high)),), zoom="fleet"))
        for high in (1.0, 80000.0)
    ]  # fmt: skip
    sheets.append(draw(Spans("t", "", MS, ("a",), (Span(0, 0.0, 0.1, "blue"),), zoom="fleet")))
    assert len({(sheet.area[0], sheet.area[2]) for sheet in sheets}) == 1


def test_bins_have_round_ends_and_hold_every_value():
    names, counts = binned([0.0307, 0.0308, 0.0321], ChartAxis("waiting", "ms", 1e-3))
    assert (names[0], names[-1], len(set(names))) == ("30.7", "32.1", len(names))
    assert (counts[:2], sum(counts)) == ((1.0, 1.0), 3.0)
