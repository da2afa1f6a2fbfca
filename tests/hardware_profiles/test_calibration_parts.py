"""Blocks of a calibration hold what they must, and say what is missing."""

import pytest
from pydantic import ValidationError

from hardware_profiles.calibration_parts import BesideCompute, FitProfile, TransferProfile
from hardware_profiles.profile_files import known_profiles, read_profile
from hardware_profiles.schema import load_calibration, load_transport


def test_gpus_that_a_token_reaches_on_one_node_are_needed():
    with pytest.raises(ValueError, match="all_to_all: ranks_per_token has no entry for 1 node"):
        load_calibration("h800_sxm", {"all_to_all.ranks_per_token": {8: 3.0}})


def test_one_estimate_of_the_slow_down_beside_compute_holds_for_both_exchanges():
    one = {"value": 1.2, "low": 1.0, "high": 1.5, "source": "a measurement"}
    both = BesideCompute.model_validate(one)
    assert (both.dispatch.high, both.combine.high) == (1.5, 1.5)
    apart = BesideCompute.model_validate({"dispatch": one, "combine": one | {"value": 1.1}})
    assert (apart.of("dispatch").value, apart.of("combine").value) == (1.2, 1.1)
    assert BesideCompute.none("nothing").of("combine").value == 1.0


def test_a_number_alone_beside_compute_is_refused_with_the_form_that_has_an_interval():
    with pytest.raises(ValidationError) as caught:
        BesideCompute.model_validate(1.1)
    message = (
        "Value error, 1.1 has no interval; allowed: value, low, high and source, such as "
        "{value: 1.1, low: 1.1, high: 1.1, source: where it comes from}"
    )
    found = [(error["loc"], error["msg"]) for error in caught.value.errors()]
    assert found == [(("dispatch",), message), (("combine",), message)]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"between": 0.2, "shape": 0.3}, {"between": 0.2, "edge": 0.3, "shape": 0.3}),
        ({"edge": 0.4, "shape": 0.3}, {"edge": 0.4, "shape": 0.3}),
        ({"between": 0.2}, {"between": 0.2}),
        ([0.2, 0.3, 0.5], {"between": 0.2, "edge": 0.3, "shape": 0.3, "beyond": 0.5}),
    ],
)
def test_what_a_file_says_of_a_shape_without_rows_holds_beside_rows_where_nothing_else_does(
    written, read
):
    family = {"kind": "gemm", "dtype": "bfloat16", "out_dtype": "bfloat16", "accumulate": False}
    fit = FitProfile.model_validate(
        family | {"kernel_set": "made_up", "rows": 4, "widths": written}
    )
    assert fit.widths == read


WHOLE = {"value": 1.0, "low": 1.0, "high": 1.0, "source": "by definition"}


def test_the_name_of_a_transport_stands_for_what_its_nics_achieve():
    deepep = load_transport("deepep_h800").achieved.nic
    assert TransferProfile(nic="deepep_h800", nvlink=WHOLE).nic == deepep
    # Of one that names another itself.
    assert TransferProfile(nic="nccl_h200_sxm", nvlink=WHOLE).nic == deepep
    calibration = load_calibration("h800_sxm", {"transfers": "nccl_h200_sxm"})
    assert calibration.transfers.nic == deepep
    with pytest.raises(ValidationError, match="unknown transport 'deepep_h80'; did you mean"):
        TransferProfile(nic="deepep_h80", nvlink=WHOLE)
    with pytest.raises(ValidationError, match=r"'0\.9' has no interval"):
        TransferProfile(nic="0.9", nvlink=WHOLE)


def test_a_nics_rate_has_one_home_among_the_shipped_transports():
    """No two of them state it, but for the ideal one."""
    rates = {name: load_transport(name).achieved.nic for name in known_profiles("transports")}
    assert {rate.value for name, rate in rates.items() if name != "ideal"} == {
        rates["deepep_h800"].value
    }
    stated = [
        name
        for name in rates
        if isinstance(read_profile("transports", name)[0]["achieved"]["nic"], dict)
    ]
    assert stated == ["deepep_h800", "ideal"]
