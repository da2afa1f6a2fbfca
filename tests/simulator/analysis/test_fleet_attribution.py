"""Effects of counterfactuals against hand-made figures."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from simulator.analysis.fleet_attribution import attribute_fleet, attribution_json, day_levels
from simulator.scenario.analysis_inputs import LoadOfDay
from simulator.scenario.files import load_scenario


def measured(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Figures that tell which counterfactuals a scenario has."""
    job = load_scenario(name, overrides).job
    assert job is not None
    assert job.requests.synthetic is not None
    assert job.decode is not None
    assert job.decode.decode_step is not None
    changes = len(job.decode.decode_step.changes)
    rate = job.requests.synthetic.rate or 0.0
    return {
        "tokens_per_second_per_user": rate / 10 - changes,
        "output_tokens_per_second_per_node": 50 * rate,
        "output_tokens_per_second": 1000 * rate,
        "nodes": 34.0 * job.replicas,
        "replicas": job.replicas,
    }


def test_effects_and_remainder_add_up_to_the_difference() -> None:
    figures, rows = attribute_fleet("day6_service", measure=measured)
    assert len(rows) > 3
    for column, figure in enumerate(figures):
        first = rows[0].values[column]
        assert first is not None
        effects = [row.effects[column] or 0.0 for row in rows]
        assert first + sum(effects) == pytest.approx(figure.si_value)
        assert rows[-1].values[column] == figure.si_value


def test_an_attribution_has_its_rows_by_json_names() -> None:
    read = json.loads(
        json.dumps(attribution_json(*attribute_fleet("day6_service", measure=measured)))
    )
    assert [figure["metric"] for figure in read["figures"]] == [
        "output_tokens_per_second_per_node",
        "tokens_per_second_per_user",
    ]
    assert read["rows"][0]["effects"] == [None, None]
    published = [figure["published"] for figure in read["figures"]]
    assert read["rows"][-1]["values"] == published
    assert all({"name", "values", "effects", "source"} == row.keys() for row in read["rows"])


def test_counterfactuals_are_applied_one_on_top_of_the_other() -> None:
    _, rows = attribute_fleet("day6_service", measure=measured)
    # The rate of the first counterfactual stays when the steps of the next ones change.
    assert rows[1].values[0] == rows[2].values[0]
    assert len({row.values[1] for row in rows[1:-1]}) == len(rows) - 2


def test_a_scenario_without_counterfactuals_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no analysis\.counterfactuals"):
        attribute_fleet("azure_code", measure=measured)


def test_a_scenario_with_other_inputs_than_those_published_is_refused() -> None:
    with pytest.raises(ValueError, match="its published figures are of other inputs; allowed"):
        attribute_fleet("day6_service", ["decode.max_batch=64"], measure=measured)


DAY = LoadOfDay(mean_nodes=226.75, peak_nodes=278, mean_replicas=7.3, levels=3)


def test_the_levels_of_a_day_have_its_mean_load_and_stay_below_its_peak() -> None:
    levels = day_levels(DAY)
    loads = [load for load, _ in levels]
    assert sum(loads) / len(loads) == pytest.approx(1.0)
    assert loads == sorted(loads)
    assert loads[-1] < DAY.peak_nodes / DAY.mean_nodes


@pytest.mark.parametrize("levels", [1, 2, 5, 24])
@pytest.mark.parametrize("mean", [0.4, 1.0, 7.3, 40.0])
def test_whole_replicas_of_a_day_follow_its_load_and_keep_their_mean(
    levels: int, mean: float
) -> None:
    day = LoadOfDay(mean_nodes=10, peak_nodes=15, mean_replicas=mean, levels=levels)
    replicas = [count for _, count in day_levels(day)]
    assert replicas == sorted(replicas)
    assert abs(sum(replicas) / levels - max(mean, 1.0)) <= 1 / levels


def test_a_day_moves_load_between_hours_and_tokens_per_node_follow_their_mean() -> None:
    _, rows = attribute_fleet("day6_service", measure=measured)
    place = next(n for n, row in enumerate(rows) if row.name.startswith("load of the day"))
    before, day = rows[place - 1], rows[place]
    levels = day_levels(DAY)
    # Whole replicas are not quite 7.3 on average, so that each has a little more or less to do.
    mean = sum(count for _, count in levels) / len(levels)
    assert day.values[0] == pytest.approx((before.values[0] or 0.0) * DAY.mean_replicas / mean)


def test_an_even_day_of_whole_replicas_changes_nothing() -> None:
    day = "{mean_nodes: 8, peak_nodes: 8, mean_replicas: 3, levels: 3}"
    flat = f"analysis.counterfactuals=[{{name: flat, source: none, load_of_day: {day}}}]"
    _, rows = attribute_fleet("day6_service", [flat], measure=measured)
    assert rows[1].effects == pytest.approx((0.0, 0.0))


def test_a_day_refuses_figures_that_it_cannot_put_together() -> None:
    with pytest.raises(ValueError, match="is not known of a day; allowed"):
        attribute_fleet(
            "day6_service",
            ["analysis.attributed_metrics=[kv_occupancy, tokens_per_second_per_user]"],
            measure=measured,
        )
