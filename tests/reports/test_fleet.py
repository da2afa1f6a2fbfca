"""A fleet's run directory, page and tables."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from reports.fleet import (
    fleet_run_tables,
    format_figure,
)
from reports.fleet_files import write_fleet_run
from reports.fleet_page import fleet_page
from simulator.analysis.fleet_metrics import ObservedFleet
from simulator.analysis.run import Run, simulate
from simulator.scenario.files import load_scenario


@pytest.fixture(scope="module")
def run() -> tuple[Run[ObservedFleet], dict[str, Any]]:
    # The scenario's own figure is of all requests.
    hits = "{name: ideal hits of 60, metric: prefix_hit_rate, value: 0.2, source: made up}"
    changes = ["requests.limit=60", "sample_interval=100 ms", f"published=[{hits}]"]
    simulated = simulate(load_scenario("mooncake_conversation", changes))
    return simulated, simulated.quick_metrics


def test_the_run_directory_holds_everything_and_its_scenario_runs_again(
    run: tuple[Run[ObservedFleet], dict[str, Any]], tmp_path: Path
) -> None:
    simulated, metrics = run
    directory = tmp_path / "run"
    write_fleet_run(simulated, metrics, directory)
    names = {path.name for path in directory.iterdir()}
    assert names == {
        "scenario.yaml",
        "metrics.json",
        "report.html",
        "figures",
        "time_series.parquet",
        "requests.parquet",
        "perfetto.json",
        ".dsv3sim-run",
    }
    assert json.loads((directory / "metrics.json").read_text()) == metrics
    again = simulate(load_scenario(str(directory / "scenario.yaml"))).quick_metrics
    assert again["ttft_s"] == metrics["ttft_s"]
    series = pd.read_parquet(directory / "time_series.parquet")
    assert len(series) == len(metrics["time_series"]["time_s"])


def test_tables_and_page_say_whose_kernels_the_steps_are_predicted_with(
    run: tuple[Run[ObservedFleet], dict[str, Any]],
) -> None:
    simulated, metrics = run
    said = (
        "engine: h200_sxm, of h200_sxm; SGLang 0.5.14 (DeepGEMM, FlashAttention 3, cuBLAS) and "
        "0.5.10 (expert layers), as AIConfigurator timed them; no row of decompressed prefill "
        "attention (2026-03 to 2026-08)"
    )
    bases = fleet_run_tables("run", metrics)[-2 if metrics["published"] else -1]
    rows = dict(zip(*(list(column.cells) for column in bases.columns), strict=True))
    assert rows["decode kernels"] == said
    assert ("decode kernels", said) in fleet_page(simulated.scenario, metrics).provenance[0].blocks[
        1
    ].rows


def test_the_tables_show_every_latency_and_the_published_figures(
    run: tuple[Run[ObservedFleet], dict[str, Any]],
) -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(*fleet_run_tables("test", run[1]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for label in ("TTFT", "TPOT", "ITL", "end to end", "queueing", "decode wait"):
        assert label in text
    assert "ideal hits of 60" in text
    assert "stable" in text or "backlogged" in text or "overloaded" in text or "verdict" in text


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("kv_occupancy", 0.1234, "12.3%"),
        ("nodes", 226.75, "226.8"),
        ("output_tokens_per_second_per_node", 14800.2, "14,800"),
        ("tokens_per_second_per_user", None, "-"),
        ("verdict", "stable", "stable"),
        ("mean_wait_s", 0.25, "250 ms"),
        ("utilisation", 0.5, "50.0%"),
        ("cost_usd_per_million_output_tokens", 1.25, "1.25 USD"),
        ("littles_law_error", 2e-16, "2e-16"),
    ],
)
def test_figures_are_written_as_people_read_them(path: str, value: Any, text: str) -> None:
    assert format_figure(path, value) == text
