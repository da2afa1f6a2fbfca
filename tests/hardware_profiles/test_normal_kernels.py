"""Normal kernels by SMs as files state them, and which stand for which GPU."""

import pytest

from hardware_profiles.fields import to_profile
from hardware_profiles.normal_kernels import (
    NormalKernels,
    known_normal_kernels,
    load_normal_kernels,
)

LAW = {
    "operation": "combine",
    "nodes": 1,
    "start": "50 us",
    "ramp": "60 us",
    "softness": 1.4,
    "copy_bandwidth_per_sm": "20 GB/s",
    "corner": 8.0,
    "link_share": 0.8,
}
ERRORS = {"operation": "combine", "rows": 9, "median": 0.02, "p90": 0.05, "quantile_80": 0.04}


def read(**changed):
    stated = {"name": "mine", "gpus": ["h100_sxm"], "laws": [LAW], "left_out": [ERRORS]}
    return to_profile(NormalKernels, stated | changed, where="mine.yaml")


def test_gpus_of_the_same_sms_share_timed_kernels():
    assert load_normal_kernels("deepep", gpu="h800_sxm").name == "deepep_h100_sxm"
    assert load_normal_kernels("deepep", gpu="gb200").name == "deepep_gb200"
    assert load_normal_kernels("deepep", gpu="rtx_4090") is None
    assert load_normal_kernels("none", gpu="h100_sxm") is None
    assert load_normal_kernels("deepep_h100_sxm", gpu="rtx_4090").gpus[0] == "h100_sxm"
    assert known_normal_kernels() == ("deepep_b200_sxm", "deepep_gb200", "deepep_h100_sxm")


def test_combine_takes_two_and_a_half_times_the_sms_of_dispatch():
    # Between four nodes: twice the bytes, 14,336 for 7,392, at 9.208 GB/s per SM for 11.97.
    laws = {
        (law.operation, law.nodes): law.copy_bandwidth_per_sm
        for law in load_normal_kernels("deepep", gpu="h100_sxm").laws
    }
    share = 14336 / 7392 * laws["dispatch", 4] / laws["combine", 4]
    assert share == pytest.approx(2.52, abs=0.005)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"laws": [LAW, LAW]}, "laws: allowed: at least one, each once per operation and nodes"),
        ({"left_out": []}, "left_out: allowed: one entry for each operation that has laws"),
        ({"laws": [LAW | {"corner": 0.5}]}, "laws.0.corner: 0.5 is not allowed"),
    ],
)
def test_what_no_kernel_can_be_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        read(**changed)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown normal kernels 'mine'; known: deepep, none"):
        load_normal_kernels("mine", gpu="h100_sxm")
