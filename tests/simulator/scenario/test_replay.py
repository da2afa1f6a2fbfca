"""The job of a replay in scenario files."""

import pytest

from simulator.scenario.files import load_scenario
from simulator.scenario.replay import ReplayJob

REPLAY = "description: a replay\nreplay: {profile: trace.json, host_speed: 2}\n"


def test_a_replay_needs_neither_model_nor_calibration_and_names_its_gpu(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(REPLAY + "gpu: h200_sxm\n", encoding="utf-8")
    scenario = load_scenario(str(path), ["gap=3 us", "gpu.hbm_bandwidth=4 TB/s"])
    assert scenario.job == ReplayJob(profile="trace.json", host_speed=2, gap="3 us")
    assert scenario.named_gpu.hbm_bandwidth == 4e12
    assert scenario.named_gpu.sms == 132
    assert scenario.name == "mine with gpu.hbm_bandwidth=4 TB/s, replay.gap=3 us"


def test_other_jobs_run_on_the_gpu_of_their_cluster():
    with pytest.raises(ValueError, match=r"gpu: a training job runs on cluster.node.gpu; set that"):
        load_scenario("dualpipe_h800_2048", ["gpu=h200_sxm"])
