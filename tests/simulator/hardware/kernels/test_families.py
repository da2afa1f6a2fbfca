"""Which operator a measurement timed."""

import pytest
from cost_models import fitted

from hardware_profiles.tables import Measurement


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("gem", (("m", 1),), "kind: 'gem' is unknown"),
        ("gemm", (("m", 1),), "sizes: gemm needs k, m, n; found m"),
    ],
)
def test_a_row_that_is_no_operator_is_an_error(kind, sizes, message):
    row = Measurement(kind, sizes, "fp8_e4m3", 132, 1e-6, None, "s", (("set", "infersim"),))
    with pytest.raises(ValueError, match=message):
        fitted(rows=[row])
