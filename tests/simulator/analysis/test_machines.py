"""One job on several machines: time, rent and power."""

from dataclasses import replace

import pytest

from hardware_profiles.schema import load_gpu
from simulator.analysis.machines import board_power, kind_of_step, on_clusters
from simulator.analysis.whole_runs import every_step
from simulator.scenario.files import load_scenario

IDEAL = ("skew=none",)


def _steps(*watts, gpu="h200_sxm", job="decode_step"):
    known = next(iter(every_step()))
    return [
        replace(known, lease=f"{gpu}_1", job=job, launch="graph", power_w=each) for each in watts
    ]


def test_power_is_the_median_of_a_gpus_own_measured_steps():
    *watts, measured_on = board_power(load_gpu("h200_sxm"), "decode", _steps(500.0, 560.0, 650.0))

    assert watts == pytest.approx([560.0, 500.0, 650.0])
    assert measured_on == ("h200_sxm",)


def test_a_gpu_that_nobody_measured_draws_the_same_share_of_its_limit():
    # 560 W of 700 W are 80%, and 80% of a GB200's 1,200 W are 960 W.
    watts, _, _, measured_on = board_power(load_gpu("gb200"), "decode", _steps(560.0))

    assert watts == pytest.approx(960.0)
    assert measured_on == ("h200_sxm",)


def test_power_is_that_of_steps_of_the_kind_that_a_graph_launches():
    steps = [
        *_steps(500.0), *_steps(700.0, job="prefill"),
        *(replace(step, launch="eager") for step in _steps(150.0)),
    ]  # fmt: skip
    assert board_power(load_gpu("h200_sxm"), "decode", steps)[0] == pytest.approx(500.0)


def test_measured_h200_decode_steps_draw_less_than_the_limit():
    # Median of the rows of decode steps in the tables of all leases of an H200.
    assert board_power(load_gpu("h200_sxm"), "decode")[0] < load_gpu("h200_sxm").power


def test_a_decode_step_on_two_clusters_costs_their_rent_and_power():
    h100, gb200 = on_clusters("decode_ep72_h100", IDEAL, ["h100_96", "gb200_nvl72"])

    assert (h100["gpus"], gb200["gpus"]) == (72, 72)
    assert (h100["calibration"], gb200["calibration"]) == ("h100_sxm", "gb200")
    for machine, rent in ((h100, 2.0), (gb200, 4.0)):
        rate = machine["tokens_per_second_per_gpu"]
        # USD per hour over tokens per hour, for a million of them.
        assert machine["usd_per_million_tokens"] == pytest.approx(rent / 3600 * 1e6 / rate)
        assert machine["joules_per_token"] == pytest.approx(machine["watts_per_gpu"] / rate)


def test_a_cluster_that_cannot_run_the_job_says_why():
    (small,) = on_clusters("decode_ep72_h100", IDEAL, ["h200_8"])

    assert "72" in small["reason"]


def test_a_job_that_is_no_step_is_refused():
    with pytest.raises(ValueError, match="holds a fleet job; allowed: a training or serving_step"):
        kind_of_step(load_scenario("azure_code"))
