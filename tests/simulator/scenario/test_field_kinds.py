"""What may stand in a field, read from its annotation."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, NonNegativeInt, PositiveInt

from hardware_profiles.estimates import Estimate
from hardware_profiles.fields import DataValue, PriceRateValue, TimeValue
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
