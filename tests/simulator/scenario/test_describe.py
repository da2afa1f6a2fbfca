"""Every field of every file, described from what checks it."""

import re

import pytest

from hardware_profiles.profile_files import known_profiles
from simulator.hardware.network.topology import TOPOLOGIES
from simulator.scenario.describe import (
    Field,
    find_fields,
    is_field,
    paths_meant,
    scenario_fields,
)
from simulator.scenario.files import load_scenario
from simulator.workload.recipes import RECIPES
from simulator.workload.schedules.known import SCHEDULES


def field(path):
    (found,) = [one for one in scenario_fields() if one.path == path]
    return found


def shown(path):
    one = field(path)
    return one.kind, one.example, one.default, one.meaning


def test_a_field_has_its_kind_its_unit_its_default_and_its_meaning():
    assert shown("training.pp") == ("whole number >= 1", "", "required", "Ranks of a pipeline.")
    assert shown("training.host_launch") == (
        "time >= 0",
        "2.8 us",
        "0 us",
        "Time that the host takes to launch one kernel; 0 where a CUDA graph launches all at once.",
    )
    assert shown("cluster.node.nic.bandwidth") == (
        "bandwidth > 0",
        "400 Gbit/s or 3.35 TB/s",
        "required",
        "Line rate, per direction.",
    )
    assert shown("training.virtual_stages")[::2] == ("whole number >= 1, or default", "default")
    assert shown("training.axes")[0] == "list of tensor | context | expert | data | pipeline"
    assert shown("model.index_topk")[::3] == ("whole number", "Tokens that a query reads at most.")


def test_entries_of_lists_and_names_that_a_file_chooses_have_a_place_in_the_path():
    assert field("published.N.source").default == "required"
    assert field("pretraining.failures.NAME.detection").kind == "time >= 0"


def test_no_path_is_described_twice_and_every_field_has_a_meaning():
    every = scenario_fields()
    assert len({one.path for one in every}) == len(every)
    assert [one.path for one in every if not one.meaning] == []


def test_meanings_point_into_no_code():
    inside = re.compile(r"\b(simulator|reference_model|hardware_profiles|reports)[./]")
    assert [one.path for one in scenario_fields() if inside.search(one.meaning)] == []


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("training.schedule", SCHEDULES),
        ("model.recipe", RECIPES),
        ("cluster.fabric.topology", TOPOLOGIES),
        ("collective.transport", known_profiles("transports")),
        ("serving_step.all_to_all.low_latency", known_profiles("low_latency")),
        ("offload.server", known_profiles("servers")),
    ],
)
def test_a_text_that_must_be_one_of_some_names_lists_them_all(path, names):
    assert set(names) - set(re.findall(r"\w+", field(path).meaning)) == set()


def paths_in(value, path=""):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        here = f"{path}.{key}".removeprefix(".")
        yield here
        if isinstance(inner, dict) or (isinstance(inner, list) and isinstance(inner[:1], list)):
            yield from paths_in(inner, here) if isinstance(inner, dict) else ()


@pytest.mark.parametrize(
    "name",
    ["dualpipe_h800_2048", "deepseek_v3_pretraining", "all_to_all_64", "decode_ep128_profile",
     "tpot_limit_cx7", "offload_ktransformers", "day6_service"],
)  # fmt: skip
def test_every_field_of_a_shipped_scenario_is_described(name):
    resolved = load_scenario(name).resolved
    ours = [path for path in paths_in(resolved) if not path.startswith("model.")]
    assert [path for path in ours if not is_field(path)] == []


@pytest.mark.parametrize(
    ("path", "job", "meant"),
    [
        ("training.shedule", "training", ["training.schedule"]),
        ("training.tp", "training", ["training.tensor_parallel"]),
        ("tp", "serving_step", ["serving_step.attention_tp"]),
        ("training.nodes", "training", ["cluster.nodes"]),
        ("hbm_bandwidth", "training", ["cluster.node.gpu.hbm_bandwidth"]),
        ("hbm_bandwidth", "replay", ["gpu.hbm_bandwidth", "cluster.node.gpu.hbm_bandwidth"]),
        ("cluster.nod.gpus", "training", ["cluster.node.gpus"]),
        ("pipeline_model_parallel_size", "training", ["training.pp"]),
        ("micro_batch_size", "training", ["training.micro_batch_sequences"]),
        ("training.experts.redundent", "training", ["training.experts.redundant"]),
        ("learning_rate", "training", []),
    ],
)
def test_a_path_that_does_not_exist_means_one_that_does(path, job, meant):
    assert paths_meant(path, job) == meant


def test_fields_are_found_by_their_path_by_their_parents_and_by_their_last_name():
    assert [one.path for one in find_fields("training.pp")] == ["training.pp"]
    assert [one.path for one in find_fields("training.experts")] == [
        "training.experts",
        "training.experts.redundant",
    ]
    assert [one.path for one in find_fields("draft_tokens")] == [
        "serving_step.speculative_decoding.draft_tokens",
        "fleet.speculative_decoding.draft_tokens",
    ]
    assert find_fields("published.3.value") == find_fields("published.N.value")
    with pytest.raises(
        ValueError, match=r"^no field 'training.shedule'; did you mean training\.schedule\?$"
    ):
        find_fields("training.shedule")
    with pytest.raises(ValueError, match=r"^no field 'learning_rate'; dsv3sim show fields lists"):
        find_fields("learning_rate")


def test_a_field_as_json_leaves_out_nothing_that_is_shown():
    assert isinstance(field("training.zero"), Field)
    assert field("training.recompute").to_json() | {"meaning": ""} == {
        "path": "training.recompute",
        "type": "published | none | attention | layer",
        "unit": None,
        "example": None,
        "default": "published",
        "choices": ["published", "none", "attention", "layer"],
        "meaning": "",
    }
