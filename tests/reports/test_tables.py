"""Blocks, inputs and texts that the reports show."""

import pandas as pd
import pytest

from reports.tables import (
    RunTables,
    blocks,
    format_interval,
    format_metric,
    format_published,
    kernels_rows,
    list_inputs,
    told_columns,
    training_tables,
    write_csv,
    write_csv_rows,
)
from reports.terminal import training_run_tables
from simulator.analysis.run import simulate
from simulator.analysis.training_metrics import training_metrics
from simulator.scenario.files import load_scenario


def test_blocks_join_the_operators_of_one_segment_phase_and_layer(tables: RunTables) -> None:
    grouped = blocks(tables.operators)
    compute = grouped[grouped["stream"] == "compute"]
    slot = ["attn(F)", "mlp(B)", "mlp(W)", "mlp(F)", "attn(B)", "attn(W)"]
    assert compute["block"].tolist() == 2 * slot
    communication = grouped[grouped["stream"] == "communication"]["block"].tolist()
    assert communication == 2 * ["combine(B)", "dispatch(F)", "dispatch(B)", "combine(F)"]


def test_blocks_cover_the_same_time_as_their_operators(tables: RunTables) -> None:
    for stream, part in blocks(tables.operators).groupby("stream"):
        operators = tables.operators[tables.operators["stream"] == stream]
        assert part["start_s"].min() == operators["start_s"].min()
        assert part["end_s"].max() == operators["end_s"].max()
        assert (part["start_s"].to_numpy()[1:] >= part["end_s"].to_numpy()[:-1]).all()


def test_inputs_are_listed_with_interval_kind_and_source() -> None:
    resolved = {
        "seed": 0,
        "calibration": {
            "gap": {"value": "2 us", "low": "1 us", "high": "3 us", "source": "a trace"},
            "floor": {"value": "3 us", "source": "estimate, not measured"},
        },
        "training": {
            "pp": 16,
            "load": 1.0,
            "sources": {"pp": "inferred from a table", "load": "assumed balanced"},
        },
        "published": [{"value": "1 s", "metric": "step_time_s", "source": "a paper"}],
    }
    rows = [(i.field, i.value, i.interval, i.kind) for i in list_inputs(resolved)]
    assert rows == [
        ("calibration.gap", "2 us", "1 us to 3 us", "sourced"),
        ("calibration.floor", "3 us", "", "estimated"),
        ("training.pp", "16", "", "derived"),
        ("training.load", "1.0", "", "assumed"),
    ]


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("step_time_s", 19.926, "19.93 s"),
        ("ranks.0.weight_s", 0.48, "480 ms"),
        ("peak_memory_bytes", 2.0**36, "64 GiB"),
        ("mfu_causal", 0.3894, "38.94%"),
        ("tflops_per_gpu_causal", 385.0, "385.0 TFLOP/s"),
        ("gpu_hours_per_trillion_tokens", 180e3, "180,000"),
        ("tokens_per_second_per_gpu", 1541.7, "1,541.7"),
        ("experts.compute_max_over_mean", 1.0574, "1.057"),
        ("speculative_decoding.speed_up", 0.98765, "0.988"),
        ("tokens_per_day", 280_985_343_853.0, "281.0 billion"),
        ("tokens_per_day", 999_999_999.0, "999,999,999"),
        ("tokens_per_day", 2.5e12, "2.5 trillion"),
    ],
)
def test_a_metric_is_written_with_its_unit(path: str, value: float, text: str) -> None:
    assert format_metric(path, value) == text


@pytest.fixture(scope="module")
def simulated() -> RunTables:
    run = simulate(load_scenario("dualpipe_h800_2048")).result
    return training_tables(run, training_metrics(run))


@pytest.fixture(scope="module")
def ideal() -> RunTables:
    """Events and operators are those of equal ranks."""
    run = simulate(load_scenario("dualpipe_h800_2048", ["training.skew=none"])).result
    return training_tables(run, training_metrics(run, with_intervals=False))


def test_events_of_a_run_sum_to_its_time_budget(ideal: RunTables) -> None:
    actions = ideal.actions
    spent = (actions["end_s"] - actions["start_s"]).groupby([actions["rank"], actions["work"]])
    totals = spent.sum().unstack(fill_value=0)
    for rank, budget in enumerate(ideal.metrics["ranks"]):
        assert totals.loc[rank, "F"] == pytest.approx(budget["forward_s"])
        assert totals.loc[rank, "F&B"] == pytest.approx(budget["overlapped_s"])
        assert totals.loc[rank, ["B", "I"]].sum() == pytest.approx(budget["backward_s"])
        assert totals.loc[rank, "W"] == pytest.approx(budget["weight_s"])
        assert totals.loc[rank, "optimizer"] == pytest.approx(budget["optimizer_s"])
        assert totals.loc[rank].sum() + budget["bubble_s"] == pytest.approx(
            ideal.metrics["step_time_s"]
        )


def test_every_action_of_a_run_has_its_operators(ideal: RunTables) -> None:
    spans = ideal.operators.groupby("chunk")["end_s"].max()
    chunks = ideal.actions[ideal.actions["chunk"] != ""]
    assert (chunks["end_s"] - chunks["start_s"]).to_numpy() == pytest.approx(
        spans.loc[chunks["chunk"]].to_numpy()
    )
    assert spans[ideal.pair] == pytest.approx(ideal.metrics["pair_time_s"])


def test_inputs_of_a_shipped_scenario_all_say_where_they_come_from(simulated: RunTables) -> None:
    assert {row.kind for row in simulated.inputs} == {"sourced", "derived", "estimated", "assumed"}
    assert all(row.source and row.value for row in simulated.inputs)


def test_a_run_says_whose_kernels_its_times_are_and_what_the_cache_makes_of_them() -> None:
    used = {
        "calibration": "h800_sxm",
        "measured_on": "h800_sxm",
        "gpu": "h200_sxm",
        "basis": "datasheet",
        "kind": "engine",
        "name": "DeepGEMM",
        "date": "2025-03",
        "made_for": "training and prefill",
        "kv_cache": "fp8_e4m3",
        "fp8_cache": {"value": 0.6, "low": 0.57, "high": 0.63},
    }
    other = {"calibration": "h200_sxm_reference", "kind": "reference"}
    took = {"metric": "step_time_s", "seconds": 0.0489, "ratio": 1.54}
    assert dict(kernels_rows({"kernels": used, "other_kernels": other | took})) == {
        "kernels": "engine: h800_sxm, of h800_sxm, restated for h200_sxm; DeepGEMM (2025-03); "
        "kernels of training and prefill, not of this job",
        "FP8 KV cache": "attention core 0.6 (0.57 to 0.63) times as long as over a BF16 cache, "
        "modelled",
        "with reference kernels": "48.9 ms, 1.54 of this (h200_sxm_reference)",
    }
    prefill = {name: used[name] for name in used if name != "fp8_cache"}
    refused = other | {"reason": "does not fit"}
    assert list(kernels_rows({"kernels": prefill, "other_kernels": refused}))[1:] == [
        ("FP8 KV cache", "changes what fits; prefill decompresses keys and values in BF16"),
        ("with reference kernels", "no prediction: does not fit (h200_sxm_reference)"),
    ]


def test_nodes_that_stay_idle_stand_below_the_headline(simulated: RunTables) -> None:
    said = "64 nodes in 4 NVLink domains: 16 of the 18 nodes of each, 2 idle and not counted"
    headline, *_ = training_run_tables("racks", {**simulated.metrics, "idle_nodes": said})
    assert str(headline.caption).splitlines()[-1] == said
    headline, *_ = training_run_tables("nodes", simulated.metrics)
    assert "NVLink" not in str(headline.caption)


@pytest.mark.parametrize(
    ("path", "ends", "text"),
    [
        ("step_time_s", (17.65, 19.09), "17.65 to 19.09 s"),
        ("pair_time_s", (0.9, 1.2), "900 ms to 1.2 s"),
        ("mfu_causal", (0.4064, 0.4397), "40.64% to 43.97%"),
        ("tokens_per_day", (284_716_291_598.0, 308_048_324_257.0), "284.7 to 308.0 billion"),
    ],
)
def test_an_interval_names_its_unit_once(path, ends, text):
    assert format_interval(path, ends) == text


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("step_time_s", 17.65, "17.65 s"),
        ("tokens_per_second_per_gpu", 1890.0, "1,890.0 tokens/s"),
        ("gpu_hours_per_trillion_tokens", 147_000.0, "147,000 h"),
        ("tflops_per_gpu_causal", 385.0, "385.0 TFLOP/s"),
        ("mfu_causal", 0.3894, "38.94%"),
        ("prefix_hit_rate", 0.5625, "56.25%"),
        ("speculative_decoding.speed_up", 1.8, "1.8"),
        ("output_tokens_per_second_per_node", 14_800.0, "14,800 tokens/s"),
    ],
)
def test_a_published_figure_is_shown_with_its_unit(path, value, text):
    assert format_published(path, value) == text


def test_a_training_run_shows_its_stages_its_precision_and_who_keeps_whom_waiting() -> None:
    stages = "embedding + 3 dense + moe, 3 x (6 moe), 8 x (4 moe), 3 x (2 moe), moe + head + mtp"
    run = simulate(
        load_scenario(
            "dualpipe_h800_2048", ["training.schedule=1f1b", f"training.stages=[{stages}]"]
        )
    ).result
    metrics = training_metrics(run, with_intervals=False)
    facts = training_tables(run, metrics).facts
    assert facts["stages"] == stages
    (warning,) = metrics["warnings"]
    assert warning.startswith("stages: pipeline rank 1 works 52% longer than the mean of the ranks")
    assert facts["uneven"] == warning
    assert facts["precision"] == (
        "fp8 products; float32 gradients, float32 master weights, bfloat16 moments"
    )
    caption = training_run_tables("a run", metrics)[-1].caption
    assert caption == f"stages: {stages}\nwarning: {warning}"


def test_a_value_is_expected_where_one_with_equal_ranks_stands_beside_it_and_simulated_elsewhere():
    heads = ("metric", "expected", "ideal", "80% interval")
    differ = [("step_time_s", "19 s", "18 s", ""), ("bubble_s", "2 s", "", "")]
    equal = [("step_time_s", "18 s", "", "17 to 19 s"), ("bubble_s", "2 s", "", "")]
    assert told_columns(heads, differ) == {0: "metric", 1: "expected", 2: "ideal"}
    assert told_columns(heads, equal) == {0: "metric", 1: "simulated", 3: "80% interval"}


def test_no_text_of_a_csv_is_a_formula(tmp_path):
    cells = ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "plain", None, 3, -4.5]
    frame = pd.DataFrame({"=cmd": cells, "numbers": [-1.5] * len(cells)})
    write_csv(frame, tmp_path / "safe.csv")
    write_csv_rows([{"=cmd": cell, "numbers": -1.5} for cell in cells], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == (tmp_path / "safe.csv").read_text()
    head, *rows = (tmp_path / "safe.csv").read_text().splitlines()
    assert head == "'=cmd,numbers"
    assert rows == [
        f"{cell},-1.5"
        for cell in ("'=1+1", "'+1", "'-2", "'@SUM(A1)", "'\t=1", "plain", "", "3", "-4.5")
    ]
