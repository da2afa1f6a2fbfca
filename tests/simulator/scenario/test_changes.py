"""What differs between two scenarios, and what the runs of changed ones are called."""

import pytest

from hardware_profiles.estimates import TimeEstimate
from simulator.scenario.changes import differences, directory_name, effective, matters, shown


def test_values_are_held_against_each_other_path_by_path():
    one = {"a": 1, "b": {"c": [1, 2.0], "d": None}, "same": "x"}
    other = {"a": 2, "b": {"c": [1, 2.5, 3], "d": {"e": 1}}, "same": "x"}
    assert list(differences(one, other)) == ["a", "b.c.1", "b.c.2", "b.d"]


def test_two_spellings_of_a_quantity_are_one_value():
    assert list(differences({"rate": 50e9}, {"rate": 400e9 / 8 * (1 + 1e-15)})) == []


def test_profiles_are_read_field_by_field():
    one, other = (
        TimeEstimate.model_validate({"value": value, "low": "1 us", "high": "4 us", "source": "x"})
        for value in ("2 us", "3 us")
    )
    assert list(differences({"gap": one}, {"gap": other})) == ["gap.value"]


@pytest.mark.parametrize(
    ("path", "metric", "moves"),
    [
        ("training.pp", "step_time_s", True),
        ("cluster.node.nic.bandwidth", "step_time_s", True),
        ("seed", "step_time_s", False),
        ("calibration.gap.value", "step_time_s", True),
        ("calibration.gap.low", "step_time_s", False),
        ("training.sources.pp", "step_time_s", False),
        ("cluster.gpu_price", "step_time_s", False),
        ("cluster.gpu_price", "cost_usd_per_trillion_tokens", True),
        ("published.0.value", "step_time_s", False),
        ("publisher", "step_time_s", True),
    ],
)
def test_few_paths_move_no_figure_and_prices_move_costs(path, metric, moves):
    assert matters(path, metric) is moves


def test_an_override_counts_by_what_it_changes():
    given = {"training.pp": "8", "training.ep": "64", "description": "mine"}
    changed = ["description", "training.pp"]
    assert effective(given, changed) == ("training.pp=8",)
    # One that exchanges a profile by name changes values inside it, one inside it a part of that.
    given = {"cluster": "h100_96", "cluster.nodes": "256", "calibration": "same"}
    assert effective(given, ["cluster.node.gpu.name"]) == ("cluster=h100_96", "cluster.nodes=256")


def test_a_long_change_is_cut_where_it_is_shown():
    assert shown(["a=1", "b=" + 100 * "x"]) == "a=1, b=" + 55 * "x" + "..."


def test_directories_are_readable_and_tell_all_changes_apart():
    assert directory_name("job", ()) == "job"
    assert directory_name("job", ("a.b=1", "c=x")) == "job+a.b=1+c=x"
    failures = directory_name("job", ("failures=[plane:3@2.0s]",))
    assert failures.startswith("job+failures=plane-3-2.0s-")
    assert failures != directory_name("job", ("failures=[plane:3@20s]",))
    long = [directory_name("job", (f"a={200 * 'x'}{end}",)) for end in "yz"]
    assert {len(name) for name in long} == {96}
    assert long[0] != long[1]
