"""Names that a field takes, as they stand in the tables that run them."""

import re

import pytest

from simulator.analysis.named_fields import names_of_fields, with_known_names
from simulator.execution.traffic import FORMS
from simulator.scenario.describe import find_fields, scenario_fields
from simulator.workload.sharding import OPTIMIZERS

FORM_NAMES = {*FORMS, *(form for forms in FORMS.values() for form in forms)}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("training.optimizer.name", OPTIMIZERS),
        ("collective.operation.algorithm", FORM_NAMES),
        ("collective.beside.N.algorithm", FORM_NAMES),
        ("events.beside.N.algorithm", FORM_NAMES),
    ],
)
def test_a_field_that_takes_a_name_of_another_room_lists_them_all(path, names):
    (found,) = with_known_names(find_fields(path))
    assert set(names) - set(re.findall(r"\w+", found.meaning)) == set()


def test_names_are_said_behind_the_meaning_and_other_fields_stay_as_they_are():
    (found,) = with_known_names(find_fields("training.optimizer.name"))
    (alone,) = find_fields("training.optimizer.name")
    assert found.meaning == f"{alone.meaning} Known: {', '.join(OPTIMIZERS)}."
    assert with_known_names(find_fields("training.pp")) == find_fields("training.pp")


def test_every_path_is_that_of_a_field():
    assert set(names_of_fields()) <= {one.path for one in scenario_fields()}
