"""A curve of one shape."""

import numpy as np
import pytest

from simulator.hardware.kernels.curves import Curve


def test_between_its_points_a_curve_is_a_line_and_beyond_them_efficiency_stays():
    # Log ideal seconds 0 and 2 took 1 and 5: two per one between them, one per one outside.
    curve = Curve(
        place=np.array([0.0]), log_ideal=np.array([0.0, 2.0]), log_seconds=np.array([1.0, 5.0])
    )
    assert curve.at(np.array([-3.0, 0.0, 0.5, 2.0, 2.5])) == pytest.approx(
        [-2.0, 1.0, 2.0, 5.0, 5.5]
    )
