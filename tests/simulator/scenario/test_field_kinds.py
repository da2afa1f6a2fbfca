"""What may stand in a field, read from its annotation."""

from collections.abc import Iterator
from typing import Annotated, Literal

import pytest
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from hardware_profiles.estimates import Estimate
from hardware_profiles.fields import DataValue, PriceRateValue, Profile, TimeValue
from simulator.scenario import files  # noqa: F401
from simulator.scenario.field_kinds import ValueKind, blocks_in, described, kinds_of


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (bool, "true or false"),
        (PositiveInt, "whole number >= 1"),
        (NonNegativeInt, "whole number >= 0"),
        (Annotated[float, Field(gt=0.0, le=1.0)], "number > 0 and <= 1"),
        (TimeValue, "time >= 0"),
        (DataValue | None, "data > 0"),
        (PriceRateValue, "price rate >= 0"),
        (Literal["a", True, 2], "a | true | 2"),
        (PositiveInt | Literal["default"], "whole number >= 1, or default"),
        (tuple[str, ...], "list of text"),
        (dict[str, DataValue], "data > 0 by name"),
        (Estimate, "fields"),
        (object, "anything"),
    ],
)
def test_a_kind_says_what_is_allowed(annotation, text):
    assert described(kinds_of(annotation)) == text


def test_blocks_lie_in_a_field_in_a_list_of_it_or_under_names():
    assert blocks_in(kinds_of(Estimate | None)) == [("", Estimate)]
    assert blocks_in(kinds_of(tuple[Estimate, ...])) == [("N", Estimate)]
    assert blocks_in(kinds_of(dict[str, Estimate])) == [("NAME", Estimate)]
    assert blocks_in((ValueKind("text"),)) == []


def profiles(of: type[Profile] = Profile) -> Iterator[type[Profile]]:
    """Every kind of fields that a file may have."""
    for kind in of.__subclasses__():
        yield kind
        yield from profiles(kind)


def errors_of(profile, name, value):
    """What is wrong with one field."""
    try:
        profile.model_validate({name: value})
    except ValidationError as found:
        return [error for error in found.errors() if error["loc"][:1] == (name,)]
    return []


def test_no_field_but_those_of_truth_values_takes_true():
    """A bare `on` is true in YAML: contention is on, or off, or a list of channels."""
    takes = {
        (profile.__name__, name)
        for profile in profiles()
        for name, field in profile.model_fields.items()
        if field.annotation is not bool and not errors_of(profile, name, True)
    }
    assert takes == {("EventsInputs", "contention")}


@pytest.mark.parametrize(
    "value", [[], [[]], [None], {}, {1: 2}, {"setting": []}, {"of": [{}]}, b"a"]
)
def test_no_kind_of_value_ends_in_anything_but_an_error_of_its_field(value):
    for profile in profiles():
        for name in profile.model_fields:
            errors_of(profile, name, value)
