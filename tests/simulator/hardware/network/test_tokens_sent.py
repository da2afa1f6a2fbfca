"""What tokens weigh and where they go, counted by hand."""

import pytest
from cost_models import CALIBRATION, dispatch

from hardware_profiles.tables import Measurement
from simulator.hardware.network.tokens_sent import (
    between_nodes,
    nic_of,
    payload_bytes,
    payload_of,
    reach_of_tests,
)


def row(dtype, **conditions):
    sizes = (("hidden", 7168), ("tokens", 4))
    return Measurement(
        "dispatch", sizes, dtype, 16, 1e-3, None, "a table", tuple(conditions.items())
    )


def test_a_token_weighs_its_values_and_the_scales_of_those_that_are_quantised():
    # 7,168 values of one byte and 56 scales of four; two bytes each without scales.
    assert payload_bytes(dispatch()) == 7168 + 56 * 4
    assert payload_of(row("fp8_e4m3")) == 4 * 7392
    assert payload_of(row("bfloat16")) == 4 * 14336
    with pytest.raises(ValueError, match="dispatch or combine of dtype 'int4' is not known"):
        payload_of(row("int4"))


def test_a_row_may_say_the_rate_of_its_nics():
    assert nic_of(row("bfloat16", nic="400 Gbit/s")) == 50e9
    assert nic_of(row("bfloat16")) is None


def test_tokens_of_the_tests_reach_the_nodes_that_the_calibration_counts():
    # Four nodes: 3.61 of them and 7.26 GPUs; three lie between two and four by their logarithm.
    reach = reach_of_tests(CALIBRATION, 32, gpus_each=8)
    assert reach.parts == (8, 8, 8, 8)
    assert (reach.nodes, reach.gpus) == (pytest.approx(3.61), 7.26)
    assert reach_of_tests(CALIBRATION, 12, gpus_each=8).parts == (8, 4)
    assert between_nodes({2: 1.0, 8: 3.0}, 4) == pytest.approx(2.0)
    assert between_nodes({2: 1.0, 8: 3.0}, 16) == 3.0
