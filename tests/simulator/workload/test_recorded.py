"""A trace is found by what it says it is of: shapes, job and recipe; else it is recorded."""

import dataclasses
import json

import pytest

from reference_model import __main__ as reference_model
from reference_model.config import load_model_config, read_config_file, shipped_configs
from reference_model.trace import Split, load_trace, save_trace, trace_name
from simulator.scenario.files import load_scenario
from simulator.workload import recorded
from simulator.workload.recorded import recorded_trace

DEBUG = load_model_config("debug")
FP8 = recorded_trace(DEBUG, "train")
# 96 more rows of vocabulary than any shipped model of these sizes.
OTHER = dataclasses.replace(DEBUG, vocab_size=608)
DIGEST = OTHER.shape_digest[:16]


def test_each_recipe_has_its_own_trace():
    assert recorded_trace(DEBUG, "train").recipe == "fp8"
    assert recorded_trace(DEBUG, "train", "bfloat16").recipe == "bfloat16"


def test_layers_that_gpus_share_have_traces_of_their_own(tmp_path):
    model = load_model_config("deepseek_v3")
    assert recorded_trace(model, "train", "fp8", Split(8)).split == Split(8)
    assert recorded_trace(model, "train").split == Split(1)
    with pytest.warns(UserWarning, match="recording one"):
        recorded_trace(DEBUG, "train", "fp8", Split(2, 2), folder=tmp_path)
    named = tmp_path / f"{DEBUG.shape_digest[:16]}.tp2etp2.train.jsonl"
    assert load_trace(named).split == Split(2, 2)


def test_gpus_that_do_not_divide_the_heads_are_refused_before_anything_is_recorded(tmp_path):
    with pytest.raises(ValueError, match="tensor_parallel: 3 does not divide num_attention_heads"):
        recorded_trace(DEBUG, "train", "fp8", Split(3), folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_trace_of_another_recipe_is_not_taken_for_the_name_of_its_file(tmp_path):
    wrong = dataclasses.replace(FP8, shape_digest=OTHER.shape_digest, recipe="bfloat16")
    save_trace(wrong, tmp_path / trace_name(DIGEST, "train", "fp8"))
    with pytest.warns(UserWarning, match="recording one"):
        assert recorded_trace(OTHER, "train", folder=tmp_path).recipe == "fp8"


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 50_000.0},
        {"routed_scaling_factor": 2.8},
        {"n_group": 1, "topk_group": 1},
        {"num_hidden_layers": 9},
    ],
)
def test_a_model_of_the_same_shapes_needs_no_recording_of_its_own(change, tmp_path):
    model = dataclasses.replace(DEBUG, **change)
    assert recorded_trace(model, "train", folder=tmp_path / "none") == FP8
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", shipped_configs())
@pytest.mark.parametrize("job", ["train", "prefill", "decode"])
def test_every_shipped_model_has_its_recordings(name, job, tmp_path):
    model = load_model_config(name)
    assert recorded_trace(model, job, folder=tmp_path / "none").shape_digest == model.shape_digest
    assert not (tmp_path / "none").exists()


def test_a_file_of_deepseek_v3_without_its_prediction_module_runs_on_the_shipped_recording(
    tmp_path,
):
    raw, _ = read_config_file("deepseek_v3")
    del raw["num_nextn_predict_layers"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "some_vl", "text_config": raw}))
    scenario = load_scenario("decode_ep128_profile", [f"model={path}"])
    found = recorded_trace(scenario.model, "decode", folder=tmp_path / "none")
    shipped = recorded_trace(load_model_config("deepseek-v3"), "decode")
    assert found.templates == shipped.without_mtp().templates
    assert not (tmp_path / "none").exists()


def test_without_multi_token_prediction_its_layer_and_its_addition_are_gone():
    alone = recorded_trace(dataclasses.replace(DEBUG, num_nextn_predict_layers=0), "train")
    head = ("head", "input_grad")
    gone = {t.name for t in FP8.templates[head]} - {t.name for t in alone.templates[head]}
    assert gone == {"head.add_input_grads"}
    kinds = {kind for kind, _ in alone.templates}
    assert kinds == {"embedding", "dense", "moe", "head"} == {kind for kind, _ in alone.saved}


def test_a_model_that_was_never_recorded_is_recorded_once(tmp_path):
    with pytest.warns(UserWarning, match=r"no train trace .* recording one in .*, once"):
        trace = recorded_trace(OTHER, "train", folder=tmp_path)
    # The head's product has as many columns as the vocabulary.
    sizes = {t.name: dict(t.sizes) for t in trace.templates["head", "forward"]}
    assert sizes["head.proj"]["n"].constant == 608
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [f"{DIGEST}.json", f"{DIGEST}.train.jsonl"]
    # The second time nothing is recorded, or it would be warned of.
    assert recorded_trace(OTHER, "train", folder=tmp_path) == trace


def test_the_command_that_is_printed_where_torch_is_missing_makes_the_next_run_work(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(recorded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    install = r"pip install '\.\[reference\]' in a checkout, or run"
    with pytest.raises(ValueError, match=install) as error:
        recorded_trace(OTHER, "decode")
    _, _, command = str(error.value).partition("python -m reference_model ")
    assert reference_model.main(command.split()) == 0
    assert recorded_trace(OTHER, "decode").shape_digest == OTHER.shape_digest


def test_a_recording_of_the_cache_that_is_damaged_or_of_other_code_is_as_good_as_none(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = recorded.user_trace_folder()
    folder.mkdir(parents=True)
    path = folder / trace_name(DIGEST, "train", "fp8")
    whole = dataclasses.replace(FP8, shape_digest=OTHER.shape_digest)
    save_trace(whole, path)
    wanted = (OTHER, "train", "fp8", Split(1), "published")
    assert recorded.is_recorded(*wanted, folder=None)
    text = path.read_text()
    for change in ('"columns":128', '"shape_digest"', "\n"):
        assert change in text
        path.write_text(text.replace(change, "9", 1))
        assert not recorded.is_recorded(*wanted, folder=None), change
        with pytest.raises(ValueError, match=r"train\.jsonl: "):
            recorded_trace(OTHER, "train", folder=folder)  # a folder of the user's own
    path.write_text(text)
    assert recorded.is_recorded(*wanted, folder=None)
    monkeypatch.setattr("reference_model.trace._code_digest", lambda: "0" * 64)
    assert not recorded.is_recorded(*wanted, folder=None)


def test_two_files_of_one_name_are_two_models(tmp_path):
    traces = {}
    for folder, vocabulary in (("a", 512), ("b", 608)):
        file = tmp_path / folder / "config.json"
        file.parent.mkdir()
        fields = dataclasses.asdict(dataclasses.replace(DEBUG, vocab_size=vocabulary))
        file.write_text(json.dumps(fields))
        own = tmp_path / "traces"
        arguments = ["trace", "--config", str(file), "--jobs", "decode", "--out", str(own)]
        assert reference_model.main(arguments) == 0
        model = load_scenario("decode_ep8_h200", [f"model={file}"]).model
        traces[folder] = recorded_trace(model, "decode", folder=own)
    assert [trace.model for trace in traces.values()] == ["debug", "config"]
    assert len(list((tmp_path / "traces").iterdir())) == 2
    assert load_trace(tmp_path / "traces" / trace_name(DIGEST, "decode", "fp8")) == traces["b"]
