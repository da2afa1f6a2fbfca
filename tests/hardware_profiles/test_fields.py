"""Fields of a file: text with units inside, SI values out, and one line for what is wrong."""

from collections.abc import Mapping
from typing import Literal

import pytest
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from hardware_profiles.fields import (
    BandwidthValue,
    Count,
    Profile,
    TimeValue,
    apply_overrides,
    parse_yaml,
    read_yaml,
    to_profile,
)


class Link(Profile):
    bandwidth: BandwidthValue
    latency: TimeValue
    lanes: Count


RAW = {"bandwidth": "50 GB/s", "latency": "2 us", "lanes": 4}


def test_text_with_units_becomes_si():
    link = to_profile(Link, RAW, where="link.yaml")
    assert (link.bandwidth, link.latency, link.lanes) == (50e9, 2e-6, 4)
    with pytest.raises(ValidationError, match="frozen"):
        link.lanes = 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bandwidth": "0 GB/s"},
            "link.yaml: bandwidth: '0 GB/s' is not allowed: it must be greater",
        ),
        ({"latency": "-1 us"}, "link.yaml: latency: '-1 us' is not allowed: it must be 0 or more"),
        (
            {"latency": "1e300 s"},
            r"link.yaml: latency: '1e300 s' is not allowed: it must be 1e-18 to 1e\+18 s",
        ),
        (
            {"bandwidth": "1e-300 GB/s"},
            r"link.yaml: bandwidth: '1e-300 GB/s' .*: it must be 1e-18 to 1e\+18 B/s",
        ),
        ({"lanes": 0}, "link.yaml: lanes: "),
        ({"lanes": 10**19}, r"link.yaml: lanes: 10000000000000000000 is not .* at most 1e\+18"),
        ({"lanes": float("nan")}, r"link.yaml: lanes: \.nan is not allowed: .* at most 1e\+18"),
        ({"lanes": [1, {"of": float("inf")}]}, r"link.yaml: lanes.1.of: \.inf is not allowed"),
        ({"speed": 1}, "link.yaml: speed: "),
        ({"sources": {"speed": "datasheet"}}, "sources names the unknown field 'speed'"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_file_and_field(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        to_profile(Link, RAW | changes, where="link.yaml")
    assert "\n" not in str(error.value)


class Numbers(Profile):
    count: NonNegativeInt = 0
    ratio: float = 0.0
    choice: Literal[1, 2] = 1
    either: PositiveInt | Literal["all"] = "all"
    many: tuple[float, ...] = ()
    named: Mapping[str, int] = Field(default_factory=dict)
    switch: bool = False
    inside: tuple["Numbers", ...] = ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": True}, "count: true is not allowed: it must be a whole number"),
        ({"ratio": False}, "ratio: false is not allowed: it must be a number"),
        ({"choice": True}, "choice: true is not allowed: it must be 1 or 2"),
        ({"either": True}, "either: true is not allowed: it must be a whole number, or 'all'"),
        ({"many": [1.0, True]}, "many.1: true is not allowed: it must be a number"),
        (
            {"inside": [{"either": True}]},
            r"inside\.0\.either: true is not allowed: it must be a whole number, or 'all'",
        ),
        ({"named": {"a": True}}, "named.a: true is not allowed: it must be a whole number"),
    ],
)  # fmt: skip
def test_true_and_false_are_no_numbers(given, message):
    with pytest.raises(ValueError, match=f"^file: {message}$"):
        to_profile(Numbers, given, where="file")
    assert to_profile(Numbers, {"switch": True}, where="file").switch is True


def test_an_override_sets_one_value_of_a_copy():
    raw = {"node": {"gpus": 8, "nic": {"rate": "1 Gbit/s"}}}
    changed = apply_overrides(raw, {"node.nic.rate": "2 Gbit/s"}, where="here")
    assert changed["node"] == {"gpus": 8, "nic": {"rate": "2 Gbit/s"}}
    assert raw["node"]["nic"] == {"rate": "1 Gbit/s"}
    with pytest.raises(ValueError, match=r"here: node.gpus.rate: 'node.gpus' has no fields to set"):
        apply_overrides(raw, {"node.gpus.rate": 1}, where="here")


def test_of_a_value_whose_holder_another_change_replaced_nothing_is_said():
    raw = {"fabric": {"link_price": "1 USD", "sources": {"link_price": "a list"}}}
    changed = apply_overrides(raw, {"fabric.link_price": "0 Hz", "fabric": "-5 us"}, where="x")
    assert changed == {"fabric": "-5 us"}


def test_a_value_that_changes_is_no_longer_of_the_source_that_the_file_names():
    raw = {
        "ep": 64,
        "pp": 16,
        "optimizer": {"master": "float32", "moments": "bfloat16"},
        "reach": {8: 3.97},
        "nic": {"value": 0.9, "low": 0.8, "high": 1.0, "source": "measured"},
        "sources": {"ep": "paper", "pp": "paper", "optimizer": "paper", "reach": "counted"},
    }
    changes = {
        "ep": 32, "pp": 16, "optimizer.moments": "float32", "reach.8": 4, "nic.low": 0.7,
    }  # fmt: skip

    changed = apply_overrides(raw, changes, where="x")

    assert changed["sources"] == {
        "ep": "given to dsv3sim",
        "pp": "paper",
        "optimizer": "paper; moments: given to dsv3sim",
        "reach": "counted; 8: given to dsv3sim",
    }
    assert changed["nic"]["source"] == "measured; low: given to dsv3sim"
    assert raw["sources"]["ep"] == "paper"
    assert raw["nic"]["source"] == "measured"
    value = apply_overrides(raw, {"nic.value": 0.95}, where="x")
    assert value["nic"]["source"] == "given to dsv3sim"
    own = apply_overrides(raw, {"ep": 32, "sources.ep": "ours"}, where="x")
    assert own["sources"]["ep"] == "ours"


def test_an_entry_of_a_list_is_set_by_its_place():
    raw = {"phases": [{"tokens": 1}, {"tokens": 2, "changes": ["a"]}]}

    assert apply_overrides(raw, {"phases.1.tokens": 3, "phases.1.changes.0": "b"}, where="x") == {
        "phases": [{"tokens": 1}, {"tokens": 3, "changes": ["b"]}]
    }
    assert raw["phases"][1] == {"tokens": 2, "changes": ["a"]}
    for path, said in (("phases.2.tokens", "'2'"), ("phases.first.tokens", "'first'")):
        with pytest.raises(ValueError, match="is no place of a list; allowed: 0 to 1") as refused:
            apply_overrides(raw, {path: 1}, where="x")
        assert str(refused.value).startswith(f"x: {path}: {said}")


def test_a_field_given_twice_is_an_error():
    with pytest.raises(ValueError, match="here: line 2: not valid YAML"):
        parse_yaml("a: 1\na: 2\n", where="here")


def test_a_dict_that_says_the_same_is_the_same_profile():
    link = to_profile(Link, RAW, where="link.yaml")
    assert to_profile(Link, dict(RAW), where="other.yaml") is link
    assert to_profile(Link, RAW | {"lanes": 5}, where="link.yaml").lanes == 5


def test_what_a_file_said_is_read_anew_once_it_says_something_else(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lanes: [1, 2]")
    first = read_yaml(path, where="a.yaml")
    first["lanes"].append(3)
    assert read_yaml(path, where="a.yaml") == {"lanes": [1, 2]}
    path.write_text("lanes: [4]")
    assert read_yaml(path, where="a.yaml") == {"lanes": [4]}


def test_what_an_alias_repeats_is_a_copy_of_its_own():
    raw = parse_yaml("{a: &same {b: 1}, c: *same}", where="x")
    assert apply_overrides(raw, {"c.b": 2}, where="x") == {"a": {"b": 1}, "c": {"b": 2}}
