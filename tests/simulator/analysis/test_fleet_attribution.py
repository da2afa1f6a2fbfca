"""Effects of counterfactuals against hand-made figures."""

from typing import Any

import pytest

from simulator.analysis.fleet_attribution import attribute
from simulator.scenario import Scenario


def measured(scenario: Scenario) -> dict[str, Any]:
    """Figures that tell which counterfactuals a scenario has."""
    job = scenario.file.fleet
    assert job is not None
    assert job.requests.synthetic is not None
    assert job.decode is not None
    assert job.decode.decode_step is not None
    changes = len(job.decode.decode_step.changes)
    rate = job.requests.synthetic.rate or 0.0
    return {
        "tokens_per_second_per_user": rate / 10 - changes,
        "output_tokens_per_second_per_node": 50 * rate,
    }


def test_effects_and_remainder_add_up_to_the_difference() -> None:
    figures, rows = attribute("day6_service", measure=measured)
    assert len(rows) > 3
    for column, figure in enumerate(figures):
        first = rows[0].values[column]
        assert first is not None
        effects = [row.effects[column] or 0.0 for row in rows]
        assert first + sum(effects) == pytest.approx(figure.si_value)
        assert rows[-1].values[column] == figure.si_value


def test_counterfactuals_are_applied_one_on_top_of_the_other() -> None:
    _, rows = attribute("day6_service", measure=measured)
    # The rate of the first counterfactual stays when the steps of the next ones change.
    assert rows[1].values[0] == rows[2].values[0] == rows[-2].values[0]
    assert len({row.values[1] for row in rows[1:-1]}) == len(rows) - 2


def test_a_scenario_without_counterfactuals_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no fleet\.counterfactuals"):
        attribute("azure_code", measure=measured)
