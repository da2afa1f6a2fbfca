"""Whole runs: which there are, and of which models."""

from reference_model import whole_runs
from reference_model.whole_runs import WholeRun, model_of


def test_every_run_is_timed_in_a_graph_and_eagerly():
    runs = whole_runs.whole_runs()
    assert len(runs) == len(set(runs)) == 22
    graphs = {(r.job, r.model, r.sequences, r.context) for r in runs if r.launch == "graph"}
    eager = {(r.job, r.model, r.sequences, r.context) for r in runs if r.launch == "eager"}
    assert graphs == eager
    decode = [r for r in runs if r.job == "decode_step" and r.launch == "graph"]
    assert [(r.sequences, r.context) for r in decode] == [
        (16, 2048), (64, 2048), (128, 2048), (16, 4096), (64, 4096), (128, 4096),
    ]  # fmt: skip


def test_the_models_are_what_their_changes_say():
    run = WholeRun("train_microbatch", "off the grid", 1, 3000, "graph")
    config = model_of(run)
    assert (config.hidden_size, config.num_attention_heads) == (5120, 96)
    assert config.moe_intermediate_size == 1536
    assert config.num_moe_layers == 2
