"""How a plan of a training job is shown."""

import yaml
from small_plans import CHANGES, FIXED, SCENARIO

from reports.training_plan import (
    bounded_line,
    bounds_frame,
    layouts_table,
    losers_table,
    plan_frame,
    plan_lines,
    write_training_plan,
)
from simulator.analysis.plan.training import plan_training, training_plan_json


def test_tables_lines_and_files_of_one_plan(tmp_path):
    plan = plan_training(SCENARIO, CHANGES, fixed=FIXED, simulate=2)
    assert layouts_table(plan).row_count == 2
    assert losers_table(plan).row_count == len(plan.losers)
    assert plan_lines(plan)[-1].startswith("Take PP")
    line = bounded_line(plan.ranked, plan.lost)
    assert line.startswith("134 layouts bounded, 90 cannot run; the least bound is ")
    assert len(bounds_frame(plan)) == 134
    assert list(plan_frame(plan)["rank"]) == [1, 2]
    write_training_plan(
        plan, tmp_path / "plan", chosen="description: chosen\n", found=training_plan_json(plan)
    )
    names = {path.name for path in (tmp_path / "plan").iterdir()}
    assert {"scenario.yaml", "metrics.json", "layouts.csv", "rows.jsonl", "bounds.parquet"} <= names
    assert yaml.safe_load((tmp_path / "plan/scenario.yaml").read_text()) == {
        "description": "chosen"
    }
