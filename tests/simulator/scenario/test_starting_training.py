"""A training scenario from a few numbers."""

import re
from pathlib import Path

import pytest
import yaml

import reference_model
from simulator.scenario.files import scenario_from
from simulator.scenario.starting_hardware import starting_cluster, starting_gpu
from simulator.scenario.starting_training import starting_training

WISH = {
    "model": "deepseek_v3", "batch": 3840, "sequence": 4096, "gpu": "h100", "gpus": 512,
    "recipe": "fp8", "layout": {},
}  # fmt: skip


def started(**changes):
    return starting_training(**(WISH | changes), where="init training")


def test_a_shipped_cluster_of_that_size_is_named_and_what_is_given_stands_in_the_file():
    text, scenario = started(layout={"pp": 8, "ep": 32})
    assert "cluster: h100_512  # 64 nodes of 8 GPUs\n" in text
    assert "  pp: 8  # GPUs of a pipeline\n" in text
    job = scenario.job
    assert (job.pp, job.ep, job.schedule, job.global_batch_sequences) == (8, 32, "1f1b", 3840)
    assert (job.micro_batch_sequences, job.zero, job.memory.reserved) == (1, 1, 4 * 2**30)
    assert scenario.calibration.name == "h800_sxm"


def test_the_file_says_what_its_scenario_is():
    text, scenario = started()
    read = scenario_from("deepseek_v3", yaml.safe_load(text), (), where="x")
    assert read.resolved == scenario.resolved


def test_another_number_of_gpus_is_the_nearest_cluster_with_so_many_nodes():
    text, scenario = started(gpus=96 * 3)
    assert scenario.cluster.gpus == 288
    assert scenario.cluster.nodes == 36
    assert "what no flag said is as in h100_512" in text


def test_values_stand_in_the_file_as_yaml_reads_them_back(tmp_path):
    folder = tmp_path / "my #2: model"
    folder.mkdir()
    config = Path(reference_model.__file__).with_name("configs") / "deepseek_v3.json"
    (folder / "config.json").write_text(config.read_text())
    text, scenario = started(model=str(folder))
    read = scenario_from("x", yaml.safe_load(text), (), where="x")
    assert read.resolved == scenario.resolved
    assert scenario.file.description == "my #2: model training step on 512 h100_sxm"
    for recipe in ("fp8\nseed: 3", "\0", "!!python/object:x y"):
        with pytest.raises(ValueError, match=re.escape(f"recipe: {recipe!r} is not allowed")):
            started(recipe=recipe)


def test_a_cluster_of_ones_own_gpus_is_named_or_made_larger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(starting_gpu("mine", {}, architecture=None, like="h100"))
    text, _ = starting_cluster(Path("ours.yaml"), gpu="./mine.yaml", gpus=64, given={}, like=None)
    Path("ours.yaml").write_text(text)
    assert started(gpu=None, gpus=None, cluster="ours.yaml")[1].cluster.gpus == 64
    larger, scenario = started(gpu=None, gpus=128, cluster="ours.yaml")
    assert (scenario.cluster.nodes, scenario.cluster.node.gpu.name) == (16, "mine")
    assert "    gpu: ./mine.yaml  # " in larger


def test_a_gpu_is_the_nearest_to_itself():
    _, scenario = started(gpu="h800", gpus=2048)
    assert scenario.cluster.name == "h800_2048"
    assert scenario.cluster.node.gpu.name == "h800_sxm"


def test_a_named_cluster_with_other_gpus_has_other_nodes():
    _, scenario = started(gpu=None, cluster="gb200_nvl72", gpus=256)
    assert scenario.cluster.nodes == 64
    assert scenario.cluster.fabric.nvlink_domain_nodes == 18


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": None}, "neither --cluster nor both of --gpu and --gpus"),
        ({"cluster": "h100_512"}, "--gpu and --cluster"),
        ({"recipe": "fp3"}, "training.recipe"),
        ({"gpus": 10}, "does not fill nodes of 8"),
    ],
)
def test_what_no_job_can_have_is_refused_in_one_line(changes, said):
    with pytest.raises(ValueError, match=said) as refused:
        started(**changes)
    assert "\n" not in str(refused.value)
