"""The attribution of a training step in terminal and comparison."""

from rich.console import Console

from reports.tables import RunTables
from reports.terminal import attribution_comparison, step_attribution_table, stragglers_table
from simulator.analysis.stragglers import Slowdown


def text_of(table) -> str:
    console = Console(width=120)
    return "".join(segment.text for segment in console.render(table))


def test_the_table_says_what_a_published_step_takes_on_top(tables: RunTables):
    step = tables.metrics["step_time_s"]
    shown = text_of(step_attribution_table("mine", tables.metrics, published_s=step + 1.5))
    assert "+1.500" in shown
    assert "beyond" not in text_of(step_attribution_table("mine", tables.metrics, published_s=None))


def test_runs_differ_by_their_causes(tables: RunTables):
    step = tables.metrics["step_time_s"]
    other = tables.metrics | {
        "step_time_s": step - 0.25,
        "attribution": [
            {"name": "arithmetic", "meaning": "", "seconds": 0.7 * step},
            {"name": "bubble", "meaning": "", "seconds": 0.3 * step - 0.25},
            {"name": "remainder", "meaning": "", "seconds": 0.0},
        ],
    }
    table = attribution_comparison([("a", tables.metrics), ("b", other)])
    shown = text_of(table)
    assert shown.count("(-0.250)") == 2
    assert shown.count("(+0.000)") == 2


def test_runs_without_causes_are_not_compared_by_them(tables: RunTables):
    assert attribution_comparison([("a", tables.metrics), ("b", {"step_time_s": 1.0})]) is None


def test_slow_ranks_stand_beside_what_the_authors_of_a_trace_found():
    theirs = Slowdown({7: 10.0, 8: 12.0}, {7: 8.0, 8: 8.0}, 1.375, {"stage": {"1": 1.25}})
    mine = Slowdown({7: 10.1, 8: 12.0}, {7: 8.0, 8: 8.0}, 1.375, {"stage": {"1": 1.2}})

    rows = [
        line.split("│")[1:-1] for line in text_of(stragglers_table("A", mine, theirs)).split("\n")
    ]
    shown = [[cell.strip() for cell in row] for row in rows if row]

    assert shown == [
        ["step, as run, mean", "11 s", "11.05 s", "+0.45%"],
        ["step, all ranks even, mean", "8 s", "8 s", "+0.00%"],
        ["slow-down", "1.3750", "1.3750", "+0.00%"],
        ["by stage 1 alone", "1.2500", "1.2000", "-4.00%"],
    ]
