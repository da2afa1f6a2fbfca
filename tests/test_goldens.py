"""No metric of a shipped scenario, or of its neighbours, moves without being written down."""

import json
import math

import pytest
from goldens import GOLDENS, golden, job_of, names

KNOWN = json.loads(GOLDENS.read_text(encoding="utf-8"))
FLEETS = [name for name in names() if job_of(name) == "fleet"]
"""They take longer than all other runs together."""


def differences(found, known):
    """Paths whose values differ, with both; counts exactly, other numbers to 1e-12."""
    paths = [*known, *(path for path in found if path not in known)]
    return {
        path: (known.get(path), found.get(path))
        for path in paths
        if not same(found.get(path), known.get(path))
    }


def same(some, other):
    if some is None or other is None or len(some) != len(other):
        return False
    return all(map(equal, some, other))


def equal(one, two):
    if isinstance(one, float) and isinstance(two, float | int) and not isinstance(two, bool):
        return math.isclose(one, two, rel_tol=1e-12)
    return one == two


def test_the_file_holds_every_run_and_no_other():
    assert list(KNOWN) == names()


@pytest.mark.parametrize("name", [name for name in names() if name not in FLEETS])
def test_no_metric_moves_unseen(name):
    assert differences(golden(name), KNOWN[name]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLEETS)
def test_no_metric_of_a_fleet_moves_unseen(name):
    assert differences(golden(name), KNOWN[name]) == {}


@pytest.mark.parametrize(
    ("one", "two", "are_equal"),
    [(1.0, 1.0 + 2e-13, True), (1.0, 1.0 + 2e-12, False), (3, 3, True), (3, 4, False),
     (0.0, 1e-300, False), (True, True, True), (None, None, True), (2.0, 2, True)],
)  # fmt: skip
def test_counts_agree_exactly_and_other_numbers_to_the_twelfth_digit(one, two, are_equal):
    assert equal(one, two) is are_equal
