"""Tables of engine kernels, from the published ones."""

from dataclasses import replace

import pytest
from made_up_rows import row

from hardware_profiles.schema import load_calibration
from simulator.calibration.shipping.calibrations import ENGINES
from simulator.calibration.shipping.engine_tables import thinned, without_repeats


def test_dense_products_between_the_kept_sizes_are_left_out():
    kept = [row(1, 7168, 2048, 1e-5), row(4096, 512, 16384, 1e-5)]
    left = [row(3, 7168, 2048, 1e-5), row(4096, 5120, 2048, 1e-5), row(4096, 7168, 51200, 1e-5)]
    other = replace(row(3, 5120, 51200, 1e-5), kind="batched_gemm")
    assert thinned([*kept, *left, other]) == [*kept, other]


def test_repeats_become_their_mean_with_how_far_they_lie_apart():
    # 1 and 4 us: geometric mean 2, deviation 1.5 sqrt(2), arithmetic mean 2.5.
    (mean,) = without_repeats([row(64, 7168, 2048, 1e-6), row(64, 7168, 2048, 4e-6)])
    assert mean.seconds == pytest.approx(2e-6)
    assert mean.spread == pytest.approx(1.5 * 2**0.5 / 2.5)
    (alone,) = without_repeats([row(64, 7168, 2048, 1e-6)])
    assert (alone.seconds, alone.spread) == (1e-6, None)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_engine_kernels_are_completed_by_the_reference_models(name):
    calibration = load_calibration(name)
    assert (calibration.kernels.kind, calibration.basis) == ("engine", "measured")
    assert calibration.completed_by == ENGINES[name][0]
    assert calibration.measurements == (name,)
