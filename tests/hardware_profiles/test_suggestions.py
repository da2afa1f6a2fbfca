"""What somebody wrote, and which known name they meant."""

import pytest

from hardware_profiles.fields import parse_yaml
from hardware_profiles.suggestions import as_written, closest, did_you_mean, meant_or_known

GPUS = ("b200_sxm", "gb200", "h100_sxm", "h200_sxm", "h20_sxm", "h800_sxm", "rtx_4090")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("h800_sxm5", ["h800_sxm"]),
        ("gb2000", ["gb200"]),
        ("H800-SXM", ["h800_sxm"]),
        ("h800", ["h800_sxm"]),
        ("rtx4090", ["rtx_4090"]),
        ("4090", ["rtx_4090"]),
        # Five GPUs have the word, which tells none from the others.
        ("sxm", []),
        ("mi300x", []),
    ],
)
def test_spelling_counts_first_then_beginnings_and_words(name, meant):
    assert closest(name, GPUS) == meant


def test_where_nothing_comes_near_all_names_are_told():
    assert meant_or_known("mi300x", GPUS[:2]) == "known: b200_sxm, gb200"
    assert meant_or_known("mi300x", GPUS[:2], otherwise="a path") == (
        "known: b200_sxm, gb200; or give a path"
    )


def test_one_name_two_names_and_another_way_make_one_question():
    assert did_you_mean(["a"]) == "did you mean a?"
    assert did_you_mean(["a", "b", "c"]) == "did you mean a, b or c?"
    assert meant_or_known("gb20", GPUS, otherwise="a path") == "did you mean gb200 or a path?"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("fp8", "'fp8'"),
        ("true", "'true'"),
        (1.5, "1.5"),
        (-3, "-3"),
        (True, "true"),
        (False, "false"),
        (None, "null"),
        (float("inf"), ".inf"),
        (-float("inf"), "-.inf"),
        ([], "[]"),
        ([None, ["a", True]], "[null, ['a', true]]"),
        ({}, "{}"),
        ({"a": {8: False}, "b": []}, "{a: {8: false}, b: []}"),
    ],
)
def test_a_value_is_named_as_a_file_has_it(value, written):
    assert as_written(value) == written
    assert parse_yaml(written, where="file") == value


def test_a_value_that_is_no_number_is_named_as_a_file_has_it():
    assert as_written((float("nan"), 1)) == "[.nan, 1]"
