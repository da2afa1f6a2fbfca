"""Whole runs: which there are, and of which models."""

import pytest

from reference_model import whole_runs
from reference_model.config import load_model_config, read_config_file
from reference_model.inference_recorder import record_inference_trace
from reference_model.precision import Recipe
from reference_model.recorder import record_trace
from reference_model.trace import TRACE_FOLDER, load_trace
from reference_model.whole_runs import FOUR_LAYERS, MANY_EXPERTS, OFF_THE_GRID

RECORDER = Recipe("fp8", "reference")


def test_every_run_but_the_last_five_is_timed_in_a_graph_and_eagerly():
    runs = whole_runs.whole_runs()
    assert len(runs) == len(set(runs)) == 27
    known, unseen = runs[:22], runs[22:]
    graphs = {(r.job, r.model, r.sequences, r.context) for r in known if r.launch == "graph"}
    eager = {(r.job, r.model, r.sequences, r.context) for r in known if r.launch == "eager"}
    assert graphs == eager
    decode = [r for r in known if r.job == "decode_step" and r.launch == "graph"]
    assert [(r.sequences, r.context) for r in decode] == [
        (16, 2048), (64, 2048), (128, 2048), (16, 4096), (64, 4096), (128, 4096),
    ]  # fmt: skip
    assert {r.launch for r in unseen} == {"graph"}
    assert {(r.job, r.model, r.sequences, r.context) for r in unseen}.isdisjoint(graphs)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (FOUR_LAYERS, {"num_hidden_layers": 4, "n_routed_experts": 8, "n_group": 2,
                       "topk_group": 2}),
        (MANY_EXPERTS, {"num_hidden_layers": 3, "n_routed_experts": 32, "n_group": 1,
                        "topk_group": 1}),
        (OFF_THE_GRID, {"num_hidden_layers": 3, "n_routed_experts": 8, "n_group": 2,
                        "topk_group": 2, "hidden_size": 5120, "num_attention_heads": 96,
                        "num_key_value_heads": 96, "moe_intermediate_size": 1536}),
    ],
)  # fmt: skip
def test_the_models_are_deepseek_v3_with_few_changes(name, changed):
    published, _ = read_config_file("deepseek_v3")
    cut = {"first_k_dense_replace": 1, "vocab_size": 16384, "num_nextn_predict_layers": 0}
    assert read_config_file(name)[0] == published | cut | changed


@pytest.mark.parametrize("name", [FOUR_LAYERS, MANY_EXPERTS, OFF_THE_GRID])
@pytest.mark.parametrize("job", ["train", "prefill", "decode"])
def test_the_traces_of_whole_runs_equal_a_new_recording(name, job):
    config, model = load_model_config(name), name.partition("/")[2]
    recorded = (
        record_trace(config, model=model, recipe=RECORDER)
        if job == "train"
        else record_inference_trace(config, job=job, model=model, recipe=RECORDER)
    )
    assert recorded == load_trace(TRACE_FOLDER / f"{model}.{job}.jsonl")
