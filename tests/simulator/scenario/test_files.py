"""Scenarios load whole, take overrides by path, and refuse what is wrong in one clear line."""

import pytest
import yaml
from shipped_scenarios import with_job

from reports.tables import left_out_note
from simulator.scenario.files import (
    JOBS,
    known_scenarios,
    load_scenario,
    scenario_from,
    scenario_loader,
    write_resolved,
)
from simulator.scenario.fleet import FleetJob
from simulator.scenario.scenario_file import job_type
from simulator.scenario.training import TrainingJob

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


def test_scenarios_of_one_file_share_what_no_change_goes_into():
    load = scenario_loader(MAIN)
    one = load(["cluster.node.nic.bandwidth=40 GB/s"])
    other = load(["cluster.node.nic.bandwidth=60 GB/s", "calibration.overlap.gemm.value=1.05"])
    assert other.named_model is one.named_model
    assert other.named_calibration is not one.named_calibration
    assert load([]).named_calibration is one.named_calibration
    assert (one.cluster.node.nic.bandwidth, other.cluster.node.nic.bandwidth) == (40e9, 60e9)


def test_a_file_that_a_scenario_names_is_read_anew_for_another_loader(tmp_path):
    calibration = tmp_path / "mine.yaml"
    shipped = load_scenario(MAIN).resolved["calibration"]
    found = []
    for name in ("first", "second"):
        calibration.write_text(yaml.safe_dump(shipped | {"name": name}))
        found.append(load_scenario(MAIN, [f"calibration={calibration}"]).calibration.name)
    assert found == ["first", "second"]


def test_a_file_that_is_read_once_gives_what_it_gives_when_read_anew():
    every = [
        ["training.skew=none", "cluster.node.nic.bandwidth=40 GB/s"],
        ["cluster.node.gpu.sm_clock=1.5 GHz", "calibration.overlap.gemm.value=1.05"],
        [],
        ["training.immediate_weights=[]", "cluster.fabric.topology=fat_tree_2"],
    ]
    load = scenario_loader(MAIN)
    assert [load(overrides) for overrides in (*every, *every)] == [
        load_scenario(MAIN, overrides) for overrides in (*every, *every)
    ]


def test_a_shipped_scenario_names_its_job_in_its_text():
    loaded = {name: load_scenario(name).job_name for name in known_scenarios()}
    for job in JOBS:
        assert with_job(job) == [name for name, found in loaded.items() if found == job]


def test_a_job_that_needs_what_the_scenario_does_not_name_says_so():
    scenario = load_scenario(MAIN, ["model=null"])
    with pytest.raises(ValueError, match="model is missing; a training job needs it"):
        _ = scenario.model


def test_overrides_reach_the_job_the_cluster_the_model_and_the_calibration():
    scenario = load_scenario(
        MAIN,
        [
            "training.schedule=zb_h1",
            "cluster.node.nic.bandwidth=200 Gbit/s",
            "cluster.node.gpu.sms=100",
            "model.num_hidden_layers=60",
            "calibration.gap.value=1 us",
        ],
    )
    assert scenario.job.schedule == "zb_h1"
    assert scenario.cluster.node.nic.bandwidth == 25e9
    assert scenario.cluster.node.gpu.sms == 100
    assert scenario.model.num_hidden_layers == 60
    assert scenario.calibration.gap.value == 1e-6


SPELLED_OUT = ("embedding + 3 dense + 1 moe", "14 x (4 moe)", "1 moe + head + mtp")


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        (["training.ep=32"], SPELLED_OUT),
        (["training.pp=16"], SPELLED_OUT),
        (["training.pp=8"], "default"),
        (["training.schedule=1f1b"], "default"),
        (["model.num_hidden_layers=60"], "default"),
        (["training.schedule=1f1b", "training.stages=[58 moe]"], ("58 moe",)),
    ],
)
def test_stages_are_kept_only_for_the_pipeline_and_model_that_they_are_written_for(changes, stages):
    training = load_scenario(MAIN, changes)
    assert training.job.stages == stages
    source = training.resolved["training"]["sources"]["stages"]
    assert source.startswith("chosen by the run") == (stages == "default")


def test_fields_of_the_job_may_be_given_without_its_name():
    assert load_scenario(MAIN, ["schedule=1f1b"]).job.schedule == "1f1b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainin.schedule=zb1p", r"unknown field 'trainin'; did you mean training\.schedule\?$"),
        (
            "training.schedul=zb1p",
            r"training.schedul: unknown field; did you mean training\.schedule\?$",
        ),
        ("training.pp=-3", "training.pp: -3 is not allowed"),
        ("training.pp=two", "training.pp: 'two' is not allowed"),
        ("cluster.node.nic.bandwidth=3", "node.nic.bandwidth: 3 has no unit"),
        ("cluster.node.nic.bandwidth=3 GB", "GB/s"),
        ("cluster.nod.gpus=8", r"nod.gpus: unknown field; did you mean cluster\.node\.gpus\?$"),
        ("cluster=h900", "unknown cluster 'h900'; known: .*h800_2048"),
        ("cluster.node.gpu=h900", "unknown GPU 'h900'; known: .*h800_sxm"),
        ("calibration=none", "unknown calibration 'none'; known: .*h800_sxm"),
        ("model=gpt", "'gpt' is neither a shipped one, a .json file, nor a folder"),
        ("training=null", "0 jobs given"),
        ("schedule", "allowed: path=value"),
        ("training.pp=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_is_allowed(override, message):
    with pytest.raises(ValueError, match=message) as error:
        load_scenario(MAIN, [override])
    assert "\n" not in str(error.value)


def test_an_unknown_scenario_names_the_known_ones():
    with pytest.raises(ValueError, match=r"^unknown scenario 'nope'; dsv3sim list scenarios"):
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


def figures(scenario):
    return len(scenario.file.published)


@pytest.mark.parametrize(
    ("name", "override", "kept"),
    [
        (MAIN, "training.pp=8", 0),
        (MAIN, "sequence_length=2048", 0),
        (MAIN, "training.skew.rows.max_over_mean=1.3", 0),
        (MAIN, "cluster.failures=[plane:3@2.0s]", 0),
        (MAIN, "cluster=gb200_nvl72", 0),
        (MAIN, "cluster.node.gpu=h100_sxm", 0),
        (MAIN, "model.num_hidden_layers=60", 0),
        (MAIN, "calibration=h800_without_trace", 0),
        (MAIN, "calibration.gap.value=1 us", 0),
        # What changes nothing, and what moves no figure.
        (MAIN, "seed=3", 14),
        (MAIN, "description=mine", 14),
        (MAIN, "cluster.gpu_price=3 USD/h", 14),
        (MAIN, "calibration.gap.high=9 us", 14),
        (MAIN, "cluster=h800_2048", 14),
        (MAIN, "training.pp=16", 14),
        (MAIN, "cluster.node.nic.bandwidth=50 GB/s", 14),  # 400 Gbit/s in other words
        ("deepep_normal", "vary.operation.gpus=[16]", 8),
        ("deepep_normal", "operation.moe.tokens=2048", 0),
        ("decode_ep144_day6", "requests.context_tokens=1024", 0),
        ("day6_service", "requests.synthetic.rate=100 Hz", 0),
        ("day6_service", "analysis.interval_requests=100", 8),
        ("mooncake_conversation", "requests.file=traces/mooncake_conversation.jsonl", 1),
        ("mooncake_conversation", "kv_admission=reserve", 0),
    ],
)
def test_published_figures_stand_only_beside_the_inputs_of_their_file(name, override, kept):
    whole = figures(load_scenario(name))
    scenario = load_scenario(name, [override])
    assert figures(scenario) == kept
    assert len(scenario.figures_left_out) == whole - kept


def test_a_price_moves_published_costs_and_nothing_else(tmp_path):
    path = tmp_path / "priced.yaml"
    cost = "{name: cost, metric: cost_usd_per_trillion_tokens, value: 1, source: a paper}"
    time = "{name: time, metric: step_time_s, value: 1 s, source: a paper}"
    resolved = write_resolved(load_scenario(MAIN, [f"published=[{cost}, {time}]"]))
    path.write_text(resolved)
    scenario = load_scenario(str(path), ["cluster.gpu_price=3 USD/h"])
    assert [figure.name for figure in scenario.file.published] == ["time"]
    assert scenario.figures_left_out == ("cost",)


def test_figures_that_come_with_the_changes_are_of_the_changed_inputs():
    mine = "published=[{name: mine, metric: step_time_s, value: 30 s, source: me}]"
    scenario = load_scenario(MAIN, ["training.pp=8", mine])
    assert [figure.name for figure in scenario.file.published] == ["mine"]
    assert scenario.changes == ("training.pp=8",)


def test_a_published_gain_of_drafting_leaves_with_the_batch_that_it_is_of():
    kept = load_scenario("mtp_one_node", ["seed=1"])
    changed = load_scenario("mtp_one_node", ["requests.context_tokens=512"])
    assert [figure.value for figure in kept.file.published] == [1.8]
    assert changed.file.published == ()
    assert changed.figures_left_out == ("gain of drafting, one node",)


def test_a_changed_scenario_is_called_so_wherever_it_is_shown(tmp_path):
    scenario = load_scenario(MAIN, ["schedule=1f1b", "training.pp=8", "seed=0"])
    assert scenario.name == f"{MAIN} with training.pp=8, training.schedule=1f1b"
    assert scenario.directory_name == f"{MAIN}+training.pp=8+training.schedule=1f1b"
    assert scenario.file.description == (
        "DeepSeek-V3 pre-training step on 2,048 H800, DualPipe PP16, EP64, FP8; "
        "changed: training.pp=8, training.schedule=1f1b"
    )
    # What was left out stays left out where the resolved scenario is run again.
    copy = tmp_path / "copy.yaml"
    copy.write_text(write_resolved(scenario))
    assert load_scenario(str(copy)).file == scenario.file


def test_values_of_an_exchanged_cluster_that_are_set_back_are_named_too():
    changes = ["cluster=h200_32", "cluster.nodes=256"]
    assert load_scenario(MAIN, changes).changes == tuple(changes)


def test_a_file_that_says_too_little_by_itself_takes_the_rest_from_its_overrides(tmp_path):
    path = tmp_path / "open.yaml"
    raw = yaml.safe_load(write_resolved(load_scenario(MAIN)))
    del raw["training"]["pp"]
    path.write_text(yaml.safe_dump(raw))
    scenario = load_scenario(str(path), ["training.pp=16"])
    assert scenario.name == "open with training.pp=16"
    assert scenario.file.published == ()


def test_a_copy_of_a_shipped_scenario_keeps_its_figures_only_while_it_keeps_its_inputs(tmp_path):
    path = tmp_path / "copy.yaml"
    path.write_text(write_resolved(load_scenario(MAIN)))
    assert len(load_scenario(str(path)).file.published) == 14
    path.write_text(path.read_text().replace("\n  pp: 16\n", "\n  pp: 8\n"))
    edited = load_scenario(str(path))
    assert edited.job.pp == 8
    assert edited.file.published == ()
    assert len(edited.figures_left_out) == 14
    assert (edited.name, edited.changes) == ("copy", ())
    assert edited.other_inputs == ("training.pp",)
    note = "14 published figures are left out, being for other inputs (changed: training.pp)."
    assert left_out_note(edited) == note


def test_a_file_that_bears_the_name_of_a_shipped_scenario_has_a_directory_of_its_own(tmp_path):
    path = tmp_path / f"{MAIN}.yaml"
    path.write_text(write_resolved(load_scenario(MAIN, ["training.pp=8"])))
    named = load_scenario(str(path)).directory_name
    assert named.startswith(f"{MAIN}-")
    assert named != load_scenario(MAIN).directory_name


def test_the_resolved_form_keeps_units_as_text():
    resolved = yaml.safe_load(write_resolved(load_scenario(MAIN)))
    assert resolved["cluster"]["node"]["nic"]["bandwidth"] == "400 Gbit/s"


def test_earlier_names_of_a_file_and_of_its_changes_make_the_same_scenario(tmp_path):
    path = tmp_path / "mine.yaml"
    raw = yaml.safe_load(write_resolved(load_scenario(MAIN, ["training.experts.redundant=64"])))
    raw["training"]["redundant_experts"] = raw["training"].pop("experts")["redundant"]
    raw["calibration"]["kernel_gap"] = raw["calibration"].pop("gap")
    path.write_text(yaml.safe_dump(raw))
    with pytest.warns(FutureWarning) as notes:
        earlier = load_scenario(str(path), ["expert_load=1.2"])
    assert [str(note.message) for note in notes] == [
        f"{path}: training.redundant_experts is called training.experts.redundant now, "
        "calibration.kernel_gap is called calibration.gap now",
        "--set: training.expert_load is called training.skew.rows.max_over_mean now",
    ]
    today = load_scenario(MAIN, ["experts.redundant=64", "skew.rows.max_over_mean=1.2"])
    assert earlier.job == today.job
    assert earlier.calibration == today.calibration


def test_a_job_that_states_no_gap_has_that_of_its_calibration():
    of_calibration = load_scenario(MAIN, ["calibration.gap.value=1.5 us"])
    assert of_calibration.job.gap.value == 1.5e-6
    of_job = load_scenario(MAIN, ["calibration.gap.value=1.5 us", "gap.value=1 us"])
    assert of_job.job.gap.value == 1e-6


def test_a_scenario_that_is_written_and_read_again_still_takes_the_gap_of_its_calibration(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(write_resolved(load_scenario(MAIN)))
    assert load_scenario(str(path), ["calibration.gap.value=1.5 us"]).job.gap.value == 1.5e-6


def test_the_field_that_holds_the_job_says_of_which_kind_it_is():
    scenario = load_scenario("day6_service")
    assert type(scenario.job) is job_type("fleet")
    assert scenario.job_name == "fleet"
    assert scenario.job_as(FleetJob) is scenario.job
    message = r"^scenarios/day6_service\.yaml: holds a fleet job; allowed here: training$"
    with pytest.raises(ValueError, match=message):
        scenario.job_as(TrainingJob)


def test_a_field_of_a_job_outside_it_names_what_a_file_may_have(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("description: d\noffload: {server: s}\nsockets: 2\n")
    message = r"mine\.yaml: sockets: unknown field; known: analysis, .*, training, vary$"
    with pytest.raises(ValueError, match=message):
        load_scenario(str(path))
    path.write_text("description: d\noffload: {server: s}\n")
    with pytest.raises(
        ValueError, match=r"mine\.yaml: offload\.sockets, offload\.experts_per_token: are missing$"
    ):
        load_scenario(str(path))


def test_fields_that_stand_beside_the_job_to_be_merged_into_it_are_taken_up(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text(
        "shared: &shared {gpus: 8, bytes_per_pair: 114688 B}\n"
        "description: eight GPUs\ncluster: leaf_spine_2048\n"
        "collective:\n  operation: {<<: *shared, name: all_to_all}\n  transport: ideal\n"
    )
    operation = load_scenario(str(path)).job.operation
    assert (operation.name, operation.gpus, operation.bytes_per_pair) == ("all_to_all", 8, 114688)


@pytest.mark.parametrize("name", ["model", "cluster", "calibration"])
def test_a_file_without_fields_is_read_like_any_other(name):
    """mtp_ep128 states a gap of its own, so that nothing else asks the calibration for one."""
    with pytest.raises(ValueError, match=rf"mtp_ep128\.yaml: {name}: .* (is|are) missing"):
        load_scenario("mtp_ep128", [f"{name}={{}}"])
    with pytest.raises(ValueError, match=rf"{name}: 0; allowed: a name, a path or fields"):
        load_scenario("mtp_ep128", [f"{name}=0"])


def test_a_field_whose_name_is_a_number_is_unknown_like_any_other():
    with pytest.raises(ValueError, match=r"x: 5: unknown field; known: analysis"):
        scenario_from("x", {5: 1}, (), where="x")
