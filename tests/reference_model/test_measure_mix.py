"""Operators timed in turns: what starting a graph takes, and which rows there are."""

import pytest

from reference_model import measure
from reference_model.measure import TimingRequest
from reference_model.measure_mix import MixTiming, lost_seconds, mix_rows, starting_seconds
from reference_model.trace import Operator


def request(columns):
    operator = Operator(
        name="", kind="copy", phase="forward", segment="", dtype="bfloat16", out_dtype="bfloat16",
        sizes=(("columns", columns), ("rows", 4096)), recompute=False, accumulate=False,
    )  # fmt: skip
    return TimingRequest(operator, "mixed", 132, partition=False)


def test_starting_a_graph_takes_what_no_kernels_would():
    """101 empty kernels take 105 us and one takes 5 us, so 1 us each, and 4 us for none."""
    assert starting_seconds(5e-6, 105e-6) == pytest.approx(4e-6)


def test_operators_that_are_too_short_together_have_no_row(monkeypatch):
    """Four launches of 30 us make 120 us, four of 20 us only 80, of the 100 us that are needed."""
    monkeypatch.setattr(measure, "multiprocessors", lambda: 132)
    long, short = request(7168), request(512)
    counts = {long: 4, short: 4}
    timing = MixTiming(
        {long: 30e-6, short: 20e-6},
        {long: 0.01, short: 0.02},
        15,
        1.7e9,
        1.98e9,
        695.0,
        float("nan"),
    )
    (row,) = mix_rows(timing, counts, job="prefill", source="a test")
    assert row.cells() == (
        "copy", "columns=7168;rows=4096", "bfloat16", "132", "3e-05", "0.01", "a test",
        "burst_clock_hz=1.98e+09;clock_hz=1.7e+09;job=prefill;out_dtype=bfloat16;power_w=695;repeats=60;set=dsv3sim_mixed;"
        "state=sustained;statistic=mean;timing=turns",
    )  # fmt: skip


def test_an_operator_takes_what_the_step_loses_without_it():
    """Steps of 10, 12 and 11 s around 8, 9 and 10.5: 11 - 8, 11.5 - 9 and, with none behind it,
    11 - 10.5 s."""
    assert lost_seconds([10.0, 8.0, 12.0, 9.0, 11.0, 10.5]) == [3.0, 2.5, 0.5]


def test_an_operator_timed_in_order_has_a_row_unless_its_error_hides_it(monkeypatch):
    monkeypatch.setattr(measure, "multiprocessors", lambda: 132)
    told, hidden, negative = request(7168), request(512), request(256)
    timing = MixTiming(
        {told: 5e-6, hidden: 2e-6, negative: -1e-7},
        {told: 0.02, hidden: 0.3, negative: 0.1},
        40, 1.97e9, 1.98e9, 480.0, 1.4e-3,
    )  # fmt: skip
    counts = {told: 4, hidden: 4, negative: 4}
    (row,) = mix_rows(timing, counts, job="decode_step", source="a test")
    assert row.cells() == (
        "copy", "columns=7168;rows=4096", "bfloat16", "132", "5e-06", "0.02", "a test",
        "burst_clock_hz=1.98e+09;clock_hz=1.97e+09;job=decode_step;out_dtype=bfloat16;power_w=480;repeats=160;set=dsv3sim_mixed;"
        "state=in_order;statistic=mean;timing=order",
    )  # fmt: skip
