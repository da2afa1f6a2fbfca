import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports.replay import kernel_table, replay_events, write_replay_run
from reports.replay_page import timeline_chart
from simulator.analysis.profile_replay import Replay, replay_scenario
from simulator.analysis.run import Run, simulate

MAPPING = """
name: made_up
format: kineto
kernel_set: made_up
devices: {NVIDIA H800: h800_sxm}
launch_latency: {value: 2 us, low: 1 us, high: 4 us, source: made up}
gap: {value: 2 us, low: 1 us, high: 3 us, source: made up}
communication: [all_to_all]
"""


@pytest.fixture
def run(tmp_path: Path) -> Run[Replay]:
    (tmp_path / "made_up.yaml").write_text(MAPPING, encoding="utf-8")
    events: list[dict[str, Any]] = []
    for number, (name, stream) in enumerate((("gemm </script>", 7), ("all_to_all", 27))):
        at = 20 * number
        common = {"ph": "X", "tid": 1}
        args = {"correlation": number, "stream": stream, "grid": [20, 1, 1], "block": [128, 1, 1]}
        events += [
            {**common, "cat": "cuda_runtime", "name": "launch", "ts": at, "dur": 5, "args": args},
            {**common, "cat": "kernel", "name": name, "ts": at + 7, "dur": 50, "args": args},
        ]
    trace = {"deviceProperties": [{"name": "NVIDIA H800"}], "traceEvents": events}
    (tmp_path / "trace.json").write_text(json.dumps(trace), encoding="utf-8")
    scenario = replay_scenario(tmp_path / "trace.json", [f"mapping={tmp_path}/made_up.yaml"])
    return simulate(scenario)


def test_one_perfetto_file_holds_the_measured_and_the_simulated_tracks(run: Run[Replay]) -> None:
    events = list(replay_events(run.result, kernel_table(run.result)))
    tracks = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert tracks == {"measured GPU", "simulated GPU", "simulated host"}
    slices = [event for event in events if event["ph"] == "X"]
    assert sum(event["pid"] == 1 for event in slices) == 2
    assert sum(event["pid"] == 2 for event in slices) == 2
    assert [event["ts"] for event in slices if event["name"] == "all_to_all"] == [20.0, 20.0]


def test_the_chart_shows_each_stream_measured_above_simulated(run: Run[Replay]) -> None:
    chart = timeline_chart(kernel_table(run.result))
    assert chart.lanes == (
        "stream 7, measured",
        "stream 7, simulated",
        "stream 27, measured",
        "stream 27, simulated",
    )
    assert len(chart.spans) == 4


def test_the_run_directory_is_complete_and_its_page_opens_offline(
    run: Run[Replay], tmp_path: Path
) -> None:
    write_replay_run(run, run.to_json(), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names - {".dsv3sim-run"} == {
        "scenario.yaml",
        "metrics.json",
        "kernels.parquet",
        "report.html",
        "perfetto.json",
        "figures",
    }
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["span_s"] == pytest.approx(run.result.span_s)
    assert len(pd.read_parquet(tmp_path / "out" / "kernels.parquet")) == 2
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "gemm </script>" not in html
    assert 'src="http' not in html
    assert "reproduced, not predicted" in html
