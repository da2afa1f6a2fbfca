"""Laws of normal kernels from rows by SMs, and errors of rows left out."""

import numpy as np
import pytest

from hardware_profiles.fields import to_profile
from hardware_profiles.normal_kernels import NormalKernels
from hardware_profiles.schema import load_calibration, load_gpu
from hardware_profiles.tables import Measurement
from simulator.calibration.normal_fit import (
    NormalRows,
    fit_normal,
    normal_kernels,
    normal_tables_of,
    slowed,
)
from simulator.hardware.network.normal_law import NormalLaw

LAW = NormalLaw(start=30e-6, ramp=40e-6, softness=1.5, copy=12e9, corner=4.0)
SHARE = 0.9


def rows_of(law, *, share=SHARE, counts=(4, 8, 16, 24)):
    tokens, sms = (grid.ravel() for grid in np.meshgrid(2.0 ** np.arange(0, 17, 2), counts))
    copied, linked = tokens * 50e3, tokens * 0.3e-6
    return NormalRows(
        tokens, copied, linked, sms.astype(float), law.seconds(copied, sms, linked / share)
    )


def test_a_law_is_found_again_in_its_own_times():
    found = fit_normal({("dispatch", 1): rows_of(LAW)})["dispatch", 1]
    assert found.law.copy == pytest.approx(LAW.copy, rel=1e-3)
    assert found.link_share == pytest.approx(SHARE, rel=1e-3)
    assert found.law.start == pytest.approx(LAW.start, rel=1e-2)
    for errors in (found.tokens_left_out, found.sms_left_out):
        assert np.abs(errors).max() < 0.01


def test_rows_of_few_sm_counts_make_no_law():
    assert fit_normal({("dispatch", 1): rows_of(LAW, counts=(8, 16, 24))}) == {}


def test_nodes_of_which_something_else_slows_rows_have_no_law():
    fewer, more = rows_of(LAW), rows_of(LAW)
    slow = NormalRows(more.tokens, more.copied, more.linked, more.sms, more.seconds * 2.5)
    # Rows below ten times the shortest are starts; all others move 0.4 of what fewer nodes do.
    short = slow.seconds < 10 * fewer.seconds.min()
    assert not slowed(slow, [fewer])[short].any()
    assert slowed(slow, [fewer])[slow.tokens == 2.0**16].all()
    assert not slowed(more, [fewer]).any()
    assert list(fit_normal({("combine", 2): fewer, ("combine", 8): slow})) == [("combine", 2)]


def row(nodes, *, seconds=1e-3, layout=None, nic=None):
    conditions = {"nodes": nodes, "layout": layout, "nic": nic}
    return Measurement(
        "dispatch",
        (("hidden", 7168), ("rows", 20), ("tokens", 4), ("top_k", 8)),
        "fp8_e4m3",
        16,
        seconds,
        None,
        "made up",
        tuple(sorted((name, value) for name, value in conditions.items() if value)),
    )


def test_rows_say_what_they_copy_and_what_crosses_links():
    tables = normal_tables_of(
        [row("1"), row("4"), row("4", nic="25 GB/s"), row("1", layout="low_latency")],
        load_calibration("h800_sxm"),
        load_gpu("h100_sxm"),
        nic=50e9,
    )
    # 4 tokens of 7,392 bytes to 5 GPUs each, over 450 GB/s.
    inside = tables["dispatch", 1]
    assert inside.copied.tolist() == [4 * 7392 * 5]
    assert inside.linked == pytest.approx([4 * 7392 * 5 / 450e9], rel=1e-12)
    # Between 4 nodes DeepEP's gate reaches 7.26 GPUs and 3.61 nodes, 3/4 of them over a NIC.
    between = tables["dispatch", 4]
    assert between.copied == pytest.approx([4 * 7392 * 7.26] * 2, rel=1e-12)
    over = 4 * 7392 * 3.61 * 0.75
    assert between.linked == pytest.approx([over / 50e9, over / 25e9], rel=1e-12)


def test_fitted_laws_can_be_read_back():
    fitted = fit_normal({("dispatch", 1): rows_of(LAW)})
    raw = normal_kernels("mine", fitted, gpus=["h100_sxm"], source="made up")
    kernels = to_profile(NormalKernels, raw, where="mine.yaml")
    (law,) = kernels.laws
    assert (law.operation, law.nodes) == ("dispatch", 1)
    assert law.copy_bandwidth_per_sm == pytest.approx(12e9, rel=1e-3)
    assert kernels.left_out[0].rows == 36
