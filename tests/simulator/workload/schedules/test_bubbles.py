"""Every bubble equals its closed form at ideal times, in all of the form's domain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.execution.pipeline import run_ideal
from simulator.workload.schedules.bidirectional import dualpipe
from simulator.workload.schedules.bubbles import (
    BUBBLE_FORMULAS,
    STAGGERED_BUBBLE_FORMULAS,
    IdealTimes,
)
from simulator.workload.schedules.known import SCHEDULES, build_schedule
from simulator.workload.schedules.one_f_one_b import (
    interleaved_overlapped,
    one_f_one_b,
)
from simulator.workload.schedules.zero_bubble import zb_h1, zb_h2, zbv

EQUAL = IdealTimes(forward=1, input_backward=1, weight_gradient=1, overlapped=3)
SIZES = [(2, 4), (4, 8), (4, 12), (8, 16), (8, 40), (16, 32), (16, 128)]


def test_every_schedule_has_its_closed_forms() -> None:
    assert BUBBLE_FORMULAS.keys() == STAGGERED_BUBBLE_FORMULAS.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("staggered", [False, True])
@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_bubble_equals_its_closed_form_where_all_works_take_one_unit(
    name: str, ranks: int, microbatches: int, staggered: bool
) -> None:
    schedule = SCHEDULES[name](ranks, microbatches)
    formulas = STAGGERED_BUBBLE_FORMULAS if staggered else BUBBLE_FORMULAS
    run = run_ideal(schedule, EQUAL, staggered=staggered)
    assert run.bubble_s.max() == formulas[name](schedule, EQUAL)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["gpipe", "1f1b", "zb_h1", "zb_h2", "zbv"]),
    ranks=st.integers(1, 9),
    more=st.integers(0, 20),
    works=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    staggered=st.booleans(),
)
def test_bubbles_of_single_works_equal_their_closed_forms_at_other_ratios(
    name: str, ranks: int, more: int, works: tuple[int, int, int], staggered: bool
) -> None:
    """W no longer than F and I; of ZBV also F no longer than I."""
    weight_gradient, forward, input_backward = sorted(works)
    if name != "zbv" and works[0] < works[1]:
        forward, input_backward = input_backward, forward
    times = IdealTimes(forward, input_backward, weight_gradient, overlapped=0)
    least = 2 * ranks - 1 if name in ("zb_h2", "zbv") else 1
    schedule = SCHEDULES[name](ranks, least + more)
    formulas = STAGGERED_BUBBLE_FORMULAS if staggered else BUBBLE_FORMULAS
    run = run_ideal(schedule, times, staggered=staggered)
    assert run.bubble_s.max() == formulas[name](schedule, times)


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 8),
    microbatches=st.integers(1, 30),
    virtual_stages=st.integers(1, 5),
    forward=st.integers(1, 9),
    backward=st.integers(1, 9),
    shorter=st.integers(0, 9),
)
def test_interleaved_and_pairs_equal_their_closed_forms_for_any_size_and_ratio(
    ranks: int, microbatches: int, virtual_stages: int, forward: int, backward: int, shorter: int
) -> None:
    """A pair lasts as long as the longer of its chunks at least, as long as both at most. With
    fewer micro-batches than ranks each further stage waits for those that are missing."""
    pair = forward + backward - min(shorter, forward, backward)
    times = IdealTimes(forward, backward / 2, backward / 2, pair)
    missing = max(ranks - microbatches, 0)
    waits = ranks - 1 + (virtual_stages - 1) * missing
    for name in ("interleaved", "interleaved_overlapped"):
        schedule = build_schedule(name, ranks, microbatches, virtual_stages=virtual_stages)
        bubble = run_ideal(schedule, times).bubble_s.max()
        assert bubble == waits * (forward + backward), name
        assert bubble == BUBBLE_FORMULAS[name](schedule, times), name


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 8),
    more=st.integers(0, 20),
    virtual_stages=st.integers(2, 4),
    works=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
)
def test_zb_h1_has_one_closed_form_for_any_number_of_stages(
    ranks: int, more: int, virtual_stages: int, works: tuple[int, int, int]
) -> None:
    weight_gradient, forward, input_backward = sorted(works)
    times = IdealTimes(forward, input_backward, weight_gradient, overlapped=0)
    schedule = zb_h1(ranks, ranks + more, virtual_stages=virtual_stages)
    by_hand = (ranks - 1) * (forward + input_backward - weight_gradient)
    assert run_ideal(schedule, times).bubble_s.max() == by_hand
    assert BUBBLE_FORMULAS["zb_h1"](schedule, times) == by_hand


def test_a_staggered_step_has_no_bubble_in_zb_h2_and_zbv_and_one_together_has() -> None:
    """Four ranks, F = I = W = 1: the last rank begins three units late and ends as much later."""
    for schedule in (zb_h2(4, 12), zbv(4, 12)):
        assert run_ideal(schedule, EQUAL, staggered=True).bubble_s.tolist() == [0, 0, 0, 0]
        assert run_ideal(schedule, EQUAL).bubble_s.tolist() == [3, 3, 3, 3]
    assert run_ideal(zb_h1(4, 12), EQUAL, staggered=True).bubble_s.tolist() == [3, 3, 3, 3]


def test_bubbles_by_hand_where_a_backward_is_longer_than_a_forward() -> None:
    """F 2, I 3, W 1, four ranks: H1 3 x (2 + 3 - 1), H2 3 x (2 + 3 - 2), ZBV 3 x 2 x (3 - 1)."""
    times = IdealTimes(2, 3, 1, 5)
    of = {name: SCHEDULES[name](4, 12) for name in ("1f1b", "zb_h1", "zb_h2", "zbv")}
    found = {name: run_ideal(one, times, staggered=True).bubble_s.max() for name, one in of.items()}
    assert found == {"1f1b": 18, "zb_h1": 12, "zb_h2": 9, "zbv": 12}


@pytest.mark.parametrize("virtual_stages", [1, 2, 3])
def test_ranks_with_fewer_pairs_wait_less(virtual_stages: int) -> None:
    """F 2, B 4, F&B 5, 4 ranks: the last waits 3 x 6; each rank before it has two pairs fewer,
    and works 2 x (6 - 5) longer. Pairs of one stage save (12 - 1) x 1 of 18 + 12 x 6."""
    times = IdealTimes(2, 2, 2, 5)
    pairs = run_ideal(interleaved_overlapped(4, 12, virtual_stages=virtual_stages), times)
    assert pairs.bubble_s.tolist() == [12, 14, 16, 18]
    if virtual_stages == 1:
        assert run_ideal(one_f_one_b(4, 12), times).makespan_s == 90
        assert pairs.makespan_s == 79


@pytest.mark.parametrize(
    ("ranks", "microbatches", "times", "first", "middle"),
    [
        (8, 20, IdealTimes(1, 1, 1, 2.6), 4.0, 4.8),
        (16, 120, IdealTimes(1, 1.2, 0.8, 2.7), 13.3, 15.1),
        (16, 120, IdealTimes(60, 80, 30, 129), 737, 983),
    ],
)
def test_dualpipe_bubble_stays_below_its_formula_at_other_ratios(
    ranks: int, microbatches: int, times: IdealTimes, first: float, middle: float
) -> None:
    """Bubbles of the first and a middle rank as an independent simulation of the published code
    gives them; pairs shorter than F + B make the formula an upper value."""
    bubble = run_ideal(dualpipe(ranks, microbatches), times).bubble_s
    assert bubble[0] == pytest.approx(first)
    assert bubble[ranks // 2 - 1] == pytest.approx(middle)
    assert bubble.max() <= BUBBLE_FORMULAS["dualpipe"](dualpipe(ranks, microbatches), times) + 1e-9


def test_1f1b_and_zb_h1_bubbles_at_the_times_of_the_h800_pair() -> None:
    times = IdealTimes(60, 80, 30, 129)
    assert run_ideal(one_f_one_b(16, 120), times).bubble_s == pytest.approx(np.full(16, 2550))
    assert run_ideal(zb_h1(16, 120), times).bubble_s == pytest.approx(np.full(16, 1650))
