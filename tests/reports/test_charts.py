"""The interactive charts of a training run."""

import json

import pytest

from reports.charts import CHARTS, budget_chart, pair_timeline, pipeline_chart
from reports.tables import RunTables


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_plain_json_with_units_on_its_axes(name: str, tables: RunTables) -> None:
    chart = CHARTS[name](tables)
    json.dumps(chart, allow_nan=False)
    titles = [chart["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert any(unit in " ".join(titles) for unit in ("(s)", "(ms)", "(GiB)"))


def test_time_budget_chart_stacks_to_the_step_time(tables: RunTables) -> None:
    traces = budget_chart(tables)["data"]
    for rank in range(4):
        total = sum(trace["y"][rank] for trace in traces)
        assert total == pytest.approx(tables.metrics["step_time_s"], rel=1e-4)


def test_pipeline_chart_has_one_trace_a_work_and_every_action(tables: RunTables) -> None:
    traces = pipeline_chart(tables)["data"]
    assert len(traces) == tables.actions["work"].nunique()
    assert sum(len(trace["x"]) for trace in traces) == len(tables.actions)


def test_pair_chart_shows_blocks_with_and_operators_without_text(tables: RunTables) -> None:
    traces = pair_timeline(tables)["data"]
    texts = [text for trace in traces for text in trace["text"]]
    assert texts.count("") == len(tables.pair_operators)
    assert texts.count("attn(B)") == 2
