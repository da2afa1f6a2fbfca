"""What a step depends on, shown."""

import json

from rich.console import Console

from reports.sensitivity import needed, sensitivity_table, tornado_chart, write_sensitivity

ROW = {"group": "GPU", "paths": ["a.b"], "step": 0.01}
FOUND = {
    "scenario": {"name": "mine", "job": "training"},
    "metric": "step_time_s",
    "value": 18.0,
    "ranks": "ideal",
    "target": 0.1,
    "rows": [
        ROW | {"name": "HBM", "value": "3.35 TB/s", "elasticity": -0.5, "saves": 0.4, "costs": 0.6,
               "need": {"factor": 1.25, "values": {"a.b": "4.1875 TB/s"}}, "at_most": 0.1},
        ROW | {"name": "NIC", "value": "400 Gbit/s", "elasticity": -0.1, "saves": 0.0, "costs": 0.2,
               "need": None, "at_most": 0.03},
        ROW | {"name": "PCIe", "value": "64 GB/s", "elasticity": 0.0, "saves": 0.0, "costs": 0.0,
               "need": None, "at_most": 0.0},
    ],
}  # fmt: skip


def test_the_table_draws_what_an_input_saves_and_costs():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(sensitivity_table(FOUND))
    lines = console.export_text().splitlines()

    assert lines[0].strip() == "mine: step_time_s 18 s, ideal ranks"
    # The longest, 0.6, has nine characters: 0.4 six, 0.2 three.
    assert "│ HBM   │ 3.35 TB/s  │     -0.500 │    ██████|▒▒▒▒▒▒▒▒▒ │ x 1.25        │" in lines
    assert "│ NIC   │ 400 Gbit/s │     -0.100 │          |▒▒▒       │ cannot (3.0%) │" in lines
    assert "without effect: PCIe" in " ".join(line.strip() for line in lines)


def test_an_input_that_must_vanish_says_so():
    assert needed({"need": {"factor": 0.0, "values": {}}}) == "none of it"


def test_the_tornado_has_a_bar_to_either_side_of_each_input_that_matters():
    chart = tornado_chart(FOUND)

    assert chart.lanes == ("HBM (3.35 TB/s)", "NIC (400 Gbit/s)")
    assert [(span.lane, span.start, span.end) for span in chart.spans] == [
        (0, -0.4, 0.0), (0, 0.0, 0.6), (1, 0.0, 0.0), (1, 0.0, 0.2),
    ]  # fmt: skip
    assert chart.notes == ("x 1.25", "cannot (3.0%)")


def test_a_directory_holds_figures_and_chart(tmp_path):
    write_sensitivity(FOUND, "description: mine\n", tmp_path / "out")

    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == FOUND
    assert (tmp_path / "out" / "tornado.svg").read_text().startswith("<svg")
