"""The page of the plan of a training job, of a plan made up by hand."""

import pytest
from made_up_plans import BOUGHT, BOUNDS, LAYOUTS, TRAINING_PLAN

from reports.page import render_page
from reports.training_plan_page import bounds_chart, steps_chart, trade_chart, training_plan_page


def page():
    return training_plan_page(TRAINING_PLAN, BOUNDS, "name: chosen\n")


def test_the_answer_is_the_fastest_step_its_layout_and_what_limits_it():
    answer = page().answer
    assert (answer.headline.value, answer.headline.note) == ("20 s", "PP16 EP64 dualpipe")
    assert answer.limits == (
        "Kernels are 80% of it, and what limits it beside them is exposed all-to-all (10.0%)."
    )
    assert [(figure.label, figure.value, figure.note) for figure in answer.figures] == [
        ("MFU", "40.0%", ""),
        ("Memory of a GPU", "60 GiB", "of 80 GiB"),
        ("Layouts", "100", "bounded; 3 simulated, 40 cannot be faster"),
        ("Bound over simulated step", "0.64", "median"),
        ("The scenario's own layout", "number 2", "10.0% behind the best"),
    ]


def test_a_budget_stands_with_what_it_buys_before_all_else():
    found = training_plan_page(TRAINING_PLAN | {"budget": BOUGHT}, BOUNDS, "name: chosen\n")
    (given,) = (figure for figure in found.answer.figures if figure.label == "Budget")
    assert (given.value, given.note) == ("5 MUSD", "spent on 2,048 GPUs")
    assert found.sections[0].title == "What the budget buys"
    (table,) = found.sections[0].blocks
    shown = [[getattr(cell, "text", cell) for cell in row] for row in table.cells]
    # 432,000 steps of 20 s are 100 days, at 1 USD per GPU and hour 2,048 x 2,400 USD.
    assert shown == [
        ["PP16 EP64 dualpipe", "4,096", "4096 USD/h", "15 s", "55 GiB", "75.0 days", "7.373 MUSD"],
        ["PP16 EP64 dualpipe", "2,048", "2048 USD/h", "20 s", "60 GiB", "100.0 days", "4.915 MUSD"],
    ]
    assert table.marked == {1}
    rent = BOUGHT | {"usd": None, "usd_per_hour": 2048.0, "tokens": None}
    by_rent = training_plan_page(TRAINING_PLAN | {"budget": rent}, BOUNDS, "")
    assert next(f.value for f in by_rent.answer.figures if f.label == "Budget") == "2048 USD/h"
    assert len(by_rent.sections[0].blocks[0].columns) == 5


def test_each_step_is_drawn_as_its_parts_with_its_bound_as_a_point():
    chart = steps_chart(LAYOUTS)
    first = [(span.start, span.end, span.hue) for span in chart.spans if span.lane == 0]
    assert first == [
        (0.0, 16.0, "blue"), (16.0, 18.0, "orange"), (18.0, 19.0, "purple"), (19.0, 19.5, "sky"),
        (19.5, 20.0, "grey"),
    ]  # fmt: skip
    assert [(lane, value) for lane, value, _, _ in chart.marks] == [(0, 15.0), (1, 14.0), (2, 14.5)]
    assert chart.notes == ("20 s", "22 s", "25 s")
    assert chart.lanes == ("1. PP16 EP64 dualpipe", "2. PP8 EP64 1f1b", "3. PP8 EP32 1f1b")


def test_bars_are_named_by_what_tells_layouts_apart():
    first, second = (
        LAYOUTS[0] | {"layout": f"PP16 EP64 {schedule} micro-batch 1 ZeRO-1", "rank": rank}
        for rank, schedule in ((1, "dualpipe"), (2, "interleaved_overlapped x2"))
    )
    chart = steps_chart([first, second])
    assert chart.lanes == ("1. dualpipe", "2. interleaved_overlapped x2")
    assert chart.caption.endswith("In all of them: PP16, EP64, micro-batch 1, ZeRO-1.")
    assert steps_chart([first]).lanes == ("1. PP16 EP64 dualpipe micro-batch 1 ZeRO-1",)


def test_the_front_of_time_and_memory_is_a_line_by_memory():
    front, others = trade_chart(LAYOUTS, TRAINING_PLAN).series
    assert [x / 2**30 for x in front.x] == [50, 60]
    assert front.y == (22.0, 20.0)
    assert (others.name, others.y) == ("others", (25.0,))


def test_bounds_are_drawn_by_place_from_the_first_to_the_last():
    bound, simulated = bounds_chart(LAYOUTS, BOUNDS).series
    assert (bound.x[0], bound.y[0]) == (1, 14.0)
    assert (bound.x[-1], bound.y[-1]) == (100, pytest.approx(25.5))
    assert list(zip(simulated.x, simulated.y, strict=True)) == [(3, 20.0), (1, 22.0), (2, 25.0)]
    assert bounds_chart(LAYOUTS[:1], BOUNDS[:1]).series[0].x == [1]


def test_the_page_holds_every_layout_and_why_the_others_are_not_taken():
    found = page()
    assert [section.title for section in found.sections] == [
        "Layouts that were simulated", "Time and memory", "What bounds say of the others",
        "Layouts that do not fit as simulated", "What was searched",
    ]  # fmt: skip
    table = found.sections[0].blocks[1]
    assert table.marked == {0, 1}
    assert [cells[1].under for cells in table.cells] == ["", "of the scenario itself", ""]
    losers = found.sections[2].blocks[1]
    assert losers.rows[0] == ("bound above the fastest simulated step", "40")
    text = render_page(found)
    assert "does not fit memory" in text
    assert "4, 8, 16" in text


def test_a_plan_without_a_layout_of_its_own_says_nothing_of_one():
    labels = [
        one.label
        for one in training_plan_page(TRAINING_PLAN | {"own": None}, BOUNDS, "").answer.figures
    ]
    assert labels[-1] == "Bound over simulated step"
