"""Scenarios load whole, take overrides by path, and refuse what is wrong in one clear line."""

import pytest
import yaml

from simulator.scenario import known_scenarios, load_scenario, write_resolved

MAIN = "dualpipe_h800_2048"


@pytest.mark.parametrize("name", known_scenarios())
def test_every_shipped_scenario_loads_and_reads_back_from_its_resolved_form(name, tmp_path):
    scenario = load_scenario(name)
    copy = tmp_path / f"{name}.yaml"
    copy.write_text(write_resolved(scenario))
    again = load_scenario(str(copy))
    assert again.resolved == scenario.resolved
    assert again.file == scenario.file
    assert again.named_model == scenario.named_model
    assert again.named_cluster == scenario.named_cluster
    assert again.named_calibration == scenario.named_calibration


def test_a_job_that_needs_what_the_scenario_does_not_name_says_so():
    scenario = load_scenario(MAIN, ["model=null"])
    with pytest.raises(ValueError, match="model is missing; a training job needs it"):
        _ = scenario.model


def test_overrides_reach_the_job_the_cluster_the_model_and_the_calibration():
    scenario = load_scenario(
        MAIN,
        [
            "training.schedule=zb1p",
            "cluster.node.nic.bandwidth=200 Gbit/s",
            "cluster.node.gpu.sms=100",
            "model.num_hidden_layers=60",
            "calibration.kernel_gap.value=1 us",
        ],
    )
    assert scenario.file.training.schedule == "zb1p"
    assert scenario.cluster.node.nic.bandwidth == 25e9
    assert scenario.cluster.node.gpu.sms == 100
    assert scenario.model.num_hidden_layers == 60
    assert scenario.calibration.kernel_gap.value == 1e-6


def test_fields_of_the_job_may_be_given_without_its_name():
    assert load_scenario(MAIN, ["schedule=1f1b"]).file.training.schedule == "1f1b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainin.schedule=zb1p", "unknown field 'trainin'; known: .*training"),
        ("training.schedul=zb1p", "training.schedul: unknown field; known: .*schedule"),
        ("training.pp=-3", "training.pp: -3 is not allowed"),
        ("training.pp=two", "training.pp: 'two' is not allowed"),
        ("cluster.node.nic.bandwidth=3", "node.nic.bandwidth: 3 has no unit"),
        ("cluster.node.nic.bandwidth=3 GB", "GB/s"),
        ("cluster.nod.gpus=8", "'nod' has no fields to set; known here with fields: .*node"),
        ("cluster=h900", "unknown cluster 'h900'; known: .*h800_2048"),
        ("cluster.node.gpu=h900", "unknown GPU 'h900'; known: .*h800_sxm"),
        ("calibration=none", "unknown calibration 'none'; known: .*h800_sxm"),
        ("model=gpt", "'gpt' is neither a .json file nor one of"),
        ("training=null", "0 jobs given"),
        ("schedule", "allowed: path=value"),
        ("training.pp=[", "not a YAML value"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_is_allowed(override, message):
    with pytest.raises(ValueError, match=message) as error:
        load_scenario(MAIN, [override])
    assert "\n" not in str(error.value)


def test_an_unknown_scenario_names_the_known_ones():
    with pytest.raises(ValueError, match=rf"unknown scenario 'nope'; known: .*{MAIN}"):
        load_scenario("nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: [", r"line \d: not valid YAML"),
        ("- a\n- b\n", "expected fields with values"),
        ("a: 1\na: 2\n", "'a' is given twice"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(text, message, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_scenario(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_published_figure_with_a_unit_reads_as_seconds():
    figures = {figure.metric: figure for figure in load_scenario(MAIN).file.published}
    assert figures["pair_time_s"].si_value == pytest.approx(0.129)
    assert figures["mfu_causal"].si_value == 0.3894


def test_the_resolved_form_keeps_units_as_text():
    resolved = yaml.safe_load(write_resolved(load_scenario(MAIN)))
    assert resolved["cluster"]["node"]["nic"]["bandwidth"] == "400 Gbit/s"
