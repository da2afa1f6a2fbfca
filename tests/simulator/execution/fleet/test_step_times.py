"""Step times: coefficients, and interpolation of a slower model."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.execution.fleet.step_times import AffineStepTimes, Grid, InterpolatedStepTimes
from simulator.scenario.fleet import AffineCoefficients


def bilinear(batch: float, context: float) -> float:
    return 0.01 + 1e-4 * batch + 1e-6 * context + 1e-7 * batch * context


def interpolated(asked: list[tuple[int, int]] | None = None) -> InterpolatedStepTimes:
    def decode(batch: int, context: int) -> float:
        if asked is not None:
            asked.append((batch, context))
        return bilinear(batch, context)

    return InterpolatedStepTimes(
        decode,
        lambda tokens, attended: 1e-6 * tokens * math.sqrt(attended),
        kv_capacity_tokens=1000,
        page_tokens=1,
        batches=(1, 2, 4, 8),
        tokens=(1, 16, 64),
        contexts=(16, 64, 256, 1024),
    )


def test_affine_times_are_the_sums_of_their_costs() -> None:
    times = AffineStepTimes(
        AffineCoefficients.model_validate(
            {
                "decode_fixed": "10 ms",
                "decode_per_request": "100 us",
                "decode_per_context_token": "1 us",
                "prefill_fixed": "5 ms",
                "prefill_per_token": "20 us",
                "prefill_per_attended_token": "10 ns",
                "kv_capacity_tokens": 7,
            }
        )
    )
    assert times.decode_step_s(3, 50) == pytest.approx(0.01 + 3 * (1e-4 + 50e-6))
    assert times.prefill_pass_s(100, 50.5) == pytest.approx(0.005 + 100 * (20e-6 + 50.5e-8))
    assert (times.kv_capacity_tokens, times.page_tokens) == (7, 1)


@given(batch=st.floats(1, 30), context=st.floats(16, 5000))
def test_interpolation_is_exact_for_a_bilinear_model_inside_and_beyond_its_grid(
    batch: float, context: float
) -> None:
    assert interpolated().decode_step_s(batch, context) == pytest.approx(bilinear(batch, context))


def test_below_the_grid_the_time_of_its_edge_holds() -> None:
    times = interpolated()
    assert times.decode_step_s(0.5, 4) == times.decode_step_s(1, 16)


def test_each_grid_point_is_asked_once() -> None:
    asked: list[tuple[int, int]] = []
    times = interpolated(asked)
    for batch in range(1, 9):
        for context in range(16, 1000, 7):
            times.decode_step_s(batch, context)
    assert len(asked) == len(set(asked)) <= 16


def test_a_model_that_gives_no_time_is_an_error() -> None:
    times = InterpolatedStepTimes(
        lambda batch, context: 0.0,
        lambda tokens, attended: 1.0,
        kv_capacity_tokens=1,
        page_tokens=1,
        batches=(1, 2),
        tokens=(1, 2),
        contexts=(1, 2),
    )
    with pytest.raises(ValueError, match=r"the step time at \(1, 1\) is 0\.0 s"):
        times.decode_step_s(1, 1)


def test_grid_lines_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        InterpolatedStepTimes(
            bilinear, bilinear, kv_capacity_tokens=1, page_tokens=1,
            batches=(2, 1), tokens=(1, 2), contexts=(1, 2),
        )  # fmt: skip


def test_on_a_grid_line_no_point_beside_it_is_asked() -> None:
    asked: list[tuple[int, int]] = []
    times = interpolated(asked)
    # A corner, two along each of the lines through it, and below the grid its first corner.
    assert times.decode_step_s(2, 64) == bilinear(2, 64)
    assert asked == [(2, 64)]
    assert times.decode_step_s(3, 64) == pytest.approx(bilinear(3, 64))
    assert times.decode_step_s(2, 160) == pytest.approx(bilinear(2, 160))
    assert asked == [(2, 64), (4, 64), (2, 256)]
    times.decode_step_s(0.5, 4)
    assert asked[3:] == [(1, 16)]
    # Inside the cell its last corner too, and then the same on its edges to the last bit.
    on_edges = [times.decode_step_s(*edge) for edge in ((2, 64), (3, 64), (2, 160))]
    times.decode_step_s(3, 160)
    assert asked[4:] == [(4, 256)]
    assert [times.decode_step_s(*edge) for edge in ((2, 64), (3, 64), (2, 160))] == on_edges


def test_each_cell_of_a_grid_is_bilinear_between_its_own_corners() -> None:
    """1 and the squares of 0, 1, 2 and 4, times squares of 1, 2, 3 and 5: halfway their means, and
    behind the last as the last two go on: 17 + 2 x 6 and 25 + 2 x 8."""
    grid = Grid(lambda x, y: float((1 + x * x) * y * y), (0, 1, 2, 4), (1, 2, 3, 5))
    first = {0.5: 1.5, 1.0: 2.0, 1.5: 3.5, 3.0: 11.0, 6.0: 29.0}
    second = {1.5: 2.5, 2.0: 4.0, 2.5: 6.5, 4.0: 17.0, 7.0: 41.0}
    for x, of_x in first.items():
        for y, of_y in second.items():
            assert grid.at(x, y) == pytest.approx(of_x * of_y, rel=1e-12)
