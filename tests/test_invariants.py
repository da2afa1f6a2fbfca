"""Every invariant holds for every shipped scenario, by the one validator of invariants.py."""

import pytest
from invariants import INVARIANTS, PAGE, held, page, rows_of

from simulator.scenario.files import known_scenarios

QUICK = (
    "all_to_all_64",
    "azure_code",
    "decode_ep8_h200",
    "offload_ktransformers",
    "tpot_limit_cx7",
)
"""One of each kind of job whose run takes a second or two."""


def broken(name):
    found = held(name)
    assert set(found) == set(INVARIANTS)
    return {key: text for key, text in found.items() if text not in ("holds", "-")}


@pytest.mark.parametrize("name", QUICK)
def test_the_invariants_hold_for_a_scenario_of_each_kind(name):
    assert broken(name) == {}


def test_the_page_shows_every_invariant_of_every_scenario_and_that_all_hold():
    text = PAGE.read_text(encoding="utf-8")
    rows = rows_of(text)
    assert tuple(rows) == known_scenarios()
    assert text == page(rows)
    assert {cell for row in rows.values() for cell in row.values()} == {"holds", "-"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(known_scenarios()) - set(QUICK)))
def test_the_invariants_hold_for_every_other_scenario(name):
    assert broken(name) == {}
