"""What all kernels of a run have in common: the device, load for seconds, another type of GPU."""

from dataclasses import replace
from math import hypot, log

import numpy as np
import pytest
from made_up_rows import BASE, made_up

from hardware_profiles.fields import ROOT
from hardware_profiles.schema import load_gpu
from simulator.hardware.common_errors import CommonEnds, common_ends, common_errors
from simulator.hardware.prediction import NORMAL_80

H800 = load_gpu("h800_sxm")


def ends(rows, *, gpu=H800, calibration=BASE, sustained_job=False) -> CommonEnds:
    return common_ends(calibration, gpu, rows, sustained_job=sustained_job)


def test_gpus_of_one_type_differ_by_two_percent_where_tiles_bind_and_one_where_memory_does():
    found = ends(made_up())

    assert found.compute == (0.02 * NORMAL_80, 0.02 * NORMAL_80)
    assert found.memory == (0.01 * NORMAL_80, 0.01 * NORMAL_80)
    assert found.other_gpu == (0.0, 0.0)


def test_a_job_at_the_power_limit_may_be_slower_than_a_table_that_does_not_say_how_it_was_timed():
    below, above = ends(made_up(), sustained_job=True).compute

    assert below == 0.02 * NORMAL_80
    assert above == pytest.approx(hypot(0.02 * NORMAL_80, log(1.16)), rel=1e-12)


@pytest.mark.parametrize("condition", [("state", "sustained"), ("pair", "yes")])
def test_rows_timed_under_the_load_of_a_step_hold_it_already(condition):
    first, *others = made_up()
    first = replace(first, conditions=(*first.conditions, condition))

    assert ends([first, *others], sustained_job=True).compute == ends(made_up()).compute


def test_a_short_kernel_repeats_within_a_time_and_a_long_one_within_a_share():
    """Of a normalization 0.78% and 40 ns: of 4 us hypot(0.78, 1)%, of 4 ms 0.78%."""
    repeat = common_errors().repeat("rmsnorm", np.array([4e-6, 4e-3]))

    assert repeat == pytest.approx([hypot(0.0078, 0.01), hypot(0.0078, 1e-5)], rel=1e-12)


def test_another_type_of_gpu_adds_the_error_of_the_calibration_once():
    """Its own `restatement`, where it has one, lies in each kernel's interval already."""
    h100 = load_gpu("h100_sxm")
    error = BASE.other_gpu
    stated = BASE.model_copy(update={"restatement": error})

    assert ends(made_up(), gpu=h100).other_gpu == pytest.approx(
        (log(error.value / error.low), log(error.high / error.value))
    )
    assert ends(made_up(), gpu=h100, calibration=stated).other_gpu == (0.0, 0.0)


def test_a_gpu_is_the_calibrations_by_what_its_file_says_not_by_how_that_is_named(tmp_path):
    """A calibration that names a user's file, on that GPU and on the shipped one of its name."""
    mine = tmp_path / "mine.yaml"
    shipped = (ROOT / "gpus" / "h800_sxm.yaml").read_text(encoding="utf-8")
    mine.write_text(shipped, encoding="utf-8")
    timed_on_it = BASE.model_copy(update={"gpu": str(mine)})
    assert ends(made_up(), calibration=timed_on_it).other_gpu == (0.0, 0.0)

    mine.write_text(shipped.replace("3.35 TB/s", "4.8 TB/s", 1), encoding="utf-8")
    error = BASE.other_gpu
    off = (log(error.value / error.low), log(error.high / error.value))
    assert ends(made_up(), calibration=timed_on_it).other_gpu == pytest.approx(off)
    assert ends(made_up(), gpu=load_gpu(str(mine))).other_gpu == pytest.approx(off)
    on_it = ends(made_up(), gpu=load_gpu(str(mine)), calibration=timed_on_it)
    assert on_it.other_gpu == (0.0, 0.0)


def test_each_kernel_takes_of_both_by_the_share_of_its_time_that_memory_takes():
    """A product that moves its bytes in a quarter of its time: 0.75 x 0.04 + 0.25 x 0.01; a kernel
    without tiles goes by memory alone."""
    moved = np.array([2.0**30, 2.0**30])
    at_peak = moved / H800.hbm_bandwidth
    found = CommonEnds((0.04, 0.08), (0.01, 0.01), (0.0, 0.3)).of(
        moved, 4 * at_peak, H800, tensor=np.array([True, False])
    )

    assert found[0] == pytest.approx([0.0325, 0.01])
    assert found[1] == pytest.approx([hypot(0.0625, 0.3), hypot(0.01, 0.3)])
    bound = CommonEnds((0.04, 0.08), (0.01, 0.01), (0.0, 0.0)).of(
        moved, at_peak, H800, tensor=np.array([True, False])
    )
    assert np.allclose(bound, 0.01)
