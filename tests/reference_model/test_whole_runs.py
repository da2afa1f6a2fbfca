"""Whole runs: which there are, and what of a profile is outside operators."""

import pytest

from reference_model import whole_runs
from reference_model.whole_runs import WholeRun, model_of, split_kernels


def event(category: str, name: str, start: float, duration: float, correlation: int | None = None):
    arguments = {} if correlation is None else {"correlation": correlation}
    return {"cat": category, "name": name, "ts": start, "dur": duration, "args": arguments}


def test_kernels_belong_to_the_operator_that_was_open_when_they_were_launched():
    """Two kernels of an operator, 3 and 4 us; a copy between operators, 5 us; and a kernel of a
    graph, 6 us, whose launch no operator holds."""
    events = [
        event("cpu_op", "dsv3::gemm", 10.0, 5.0),
        event("cpu_op", "aten::mm", 11.0, 2.0),
        event("cuda_runtime", "cudaLaunchKernel", 11.5, 1.0, 1),
        event("cuda_runtime", "cudaLaunchKernel", 14.0, 1.0, 2),
        event("cuda_runtime", "cudaMemcpyAsync", 16.0, 1.0, 3),
        event("cuda_runtime", "cudaGraphLaunch", 17.0, 1.0, 4),
        event("kernel", "first", 30.0, 3.0, 1),
        event("kernel", "second", 40.0, 4.0, 2),
        event("gpu_memcpy", "copy", 50.0, 5.0, 3),
        event("kernel", "replayed", 60.0, 6.0, 4),
    ]
    split = split_kernels(events)
    assert split.kernels == 4
    assert split.inside == {"gemm": pytest.approx(7e-6)}
    assert split.outside == {"copy": pytest.approx(5e-6), "replayed": pytest.approx(6e-6)}
    assert split.total == pytest.approx(18e-6)


def test_of_equal_repetitions_the_last_one_counts():
    events = [event("kernel", "one", at, 1.0 + at, number) for number, at in enumerate((0, 5, 9))]
    events += [event("kernel", "two", at, 2.0, number) for number, at in enumerate((2, 7, 20))]
    split = split_kernels(events, repetitions=3)
    assert split.kernels == 2
    assert split.outside == {"one": pytest.approx(10e-6), "two": pytest.approx(2e-6)}


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
