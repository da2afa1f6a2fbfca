"""Tables of what there is."""

from hardware_profiles.suggestions import closest
from reports.discovery import field_tables, metrics_by_name, metrics_table, name_table
from simulator.analysis.every_metric import METRICS
from simulator.scenario.describe import find_fields


def cells(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_names_stand_beside_a_line_on_each():
    assert cells(name_table("gpus", {"a": "first", "b": "second"})) == [
        ("a", "first"),
        ("b", "second"),
    ]


def test_fields_are_grouped_by_the_block_that_holds_them():
    tables = field_tables(find_fields("training.experts"))
    assert [table.title for table in tables] == ["training", "training.experts"]
    assert cells(tables[1]) == [
        ("redundant", "whole number >= 0", "0", "Slots beyond one for each routed expert.")
    ]


def test_a_quantity_shows_how_it_is_written():
    (table,) = field_tables(find_fields("cluster.node.nic.bandwidth"))
    ((name, value, default, meaning),) = cells(table)
    assert (name, default, meaning) == ("bandwidth", "required", "Line rate, per direction.")
    assert value == "bandwidth > 0, such as 400 Gbit/s or 3.35 TB/s"


def test_a_metric_names_its_unit_its_better_way_its_meaning_and_its_jobs():
    found = metrics_by_name()
    chosen = {name: found[name] for name in ("step_time_s", "completion_s")}
    assert cells(metrics_table(chosen)) == [
        ("step_time_s", "s", "less",
         "time of one step: of training, of decode per token round, of a bound", "all"),
        ("completion_s", "s", "less", "when everything has arrived everywhere", "collective"),
    ]  # fmt: skip


def test_metrics_of_one_job_need_no_column_of_jobs():
    table = metrics_table(metrics_by_name(["offload"]))
    assert [column.header for column in table.columns] == ["metric", "unit", "better", "meaning"]
    assert len(cells(table)) == len(METRICS["offload"])


def test_every_metric_is_the_closest_to_its_own_name():
    assert all(closest(name, metrics_by_name()) == [name] for name in metrics_by_name())
