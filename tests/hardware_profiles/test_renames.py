"""Earlier names of fields: read for a release, with one note that says today's."""

import re
import warnings

import pytest

from hardware_profiles.profile_files import read_profile
from hardware_profiles.renames import (
    EARLIER_NAMES,
    path_of_today,
    value_of_today,
    with_names_of_today,
)
from hardware_profiles.schema import (
    CalibrationProfile,
    TransportProfile,
    load_calibration,
    load_transport,
)
from simulator.scenario.axes import file_axes


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


RENAMED = [
    (kind, old, new)
    for kind, names in EARLIER_NAMES.items()
    for old, new in names.items()
    if "=" not in old and new
]
DROPPED = [old for old, new in EARLIER_NAMES["scenarios"].items() if not new]


@pytest.mark.parametrize(("kind", "old", "new"), RENAMED)
def test_a_value_under_an_earlier_name_is_read_under_todays(kind, old, new):
    with pytest.warns(FutureWarning, match=re.escape(f"a.yaml: {old} is called {new} now")):
        found = with_names_of_today(nested(old, "7"), kind, where="a.yaml")
    for key in new.split("."):
        found = found[key]
    assert found == "7"


@pytest.mark.parametrize(("kind", "old", "new"), RENAMED)
def test_a_change_of_an_earlier_name_is_one_of_todays(kind, old, new):
    with pytest.warns(FutureWarning, match=re.escape(f"--set: {old} is called {new} now")):
        assert path_of_today(f"{old}.value", kind, where="--set") == f"{new}.value"


def test_the_engine_calibrations_are_read_under_their_earlier_names():
    with pytest.warns(FutureWarning, match="calibrations: h200_sxm_engine is called h200_sxm now"):
        assert load_calibration("h200_sxm_engine").name == "h200_sxm"


def test_a_file_with_several_earlier_names_has_one_note_and_keeps_its_sources():
    job = {"pp": 16, "expert_load": 1.3, "reserved_memory": "4 GiB"}
    raw = {"training": job | {"sources": {"pp": "a paper", "expert_load": "a guess"}}}
    note = (
        r"^old\.yaml: training\.expert_load is called training\.skew\.rows\.max_over_mean now, "
        r"training\.reserved_memory is called training\.memory\.reserved now$"
    )
    with pytest.warns(FutureWarning, match=note) as notes:
        found = with_names_of_today(raw, "scenarios", where="old.yaml")
    assert len(notes) == 1
    assert found["training"] == {
        "pp": 16,
        "skew": {"rows": {"max_over_mean": 1.3, "sources": {"max_over_mean": "a guess"}}},
        "memory": {"reserved": "4 GiB"},
        "sources": {"pp": "a paper"},
    }
    assert raw["training"]["expert_load"] == 1.3


def test_a_value_that_is_called_otherwise_now_is_read_too():
    with pytest.warns(FutureWarning, match="basis=transfer is called basis=restated now"):
        found = with_names_of_today({"basis": "transfer"}, "calibrations", where="a")
    assert found == {"basis": "restated"}


def test_a_change_to_a_value_that_is_called_otherwise_now_is_read_too():
    with pytest.warns(FutureWarning, match="load=zipf is called serving_step.experts.load=popula"):
        found = value_of_today("serving_step.experts.load", "zipf", "scenarios", where="--set")
    assert found == "popularity"
    # The name of today has no such value: the job's own validator says which it has.
    assert value_of_today("serving_step.skew.rows.form", "zipf", "scenarios", where="") == "zipf"


@pytest.mark.parametrize("old", DROPPED)
def test_what_is_read_no_more_is_left_out_of_a_file_and_refused_as_a_change(old):
    with pytest.warns(FutureWarning, match=f"^a.yaml: {old} is read no more$"):
        found = with_names_of_today(nested(old, "7"), "scenarios", where="a.yaml")
    *parents, last = old.split(".")
    for key in parents:
        found = found[key]
    assert last not in found
    with pytest.raises(ValueError, match=f"^--set: {old} is read no more; allowed: leave it out"):
        path_of_today(old, "scenarios", where="--set")


def test_the_source_of_what_is_read_no_more_leaves_with_it():
    drafting = {
        "published_speed_up": 1.8,
        "sources": {"published_speed_up": "a", "acceptance": "b"},
    }
    with pytest.warns(FutureWarning, match="published_speed_up is read no more"):
        found = with_names_of_today(
            {"serving_step": {"speculative_decoding": drafting}}, "scenarios", where="a"
        )
    assert found == {"serving_step": {"speculative_decoding": {"sources": {"acceptance": "b"}}}}


def test_what_a_collective_varied_takes_turns_in_the_order_that_it_had():
    raw = {"collective": {"vary_groups": [2], "vary_gpus": [8], "vary_routings": ["ecmp"]}}
    with pytest.warns(FutureWarning):
        found = with_names_of_today(raw, "scenarios", where="a")
    assert [axis.paths for axis in file_axes(found["vary"], where="a")] == [
        ("cluster.fabric.routing",),
        ("operation.gpus",),
        ("operation.group",),
    ]


def test_names_of_today_are_read_without_a_note():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = {"training": {"skew": {"rows": {"max_over_mean": 1.3}}}, "basis": "measured"}
        assert with_names_of_today(raw, "scenarios", where="a") is raw
        path = "training.skew.rows.max_over_mean"
        assert path_of_today(path, "scenarios", where="--set") == path


def test_both_names_of_one_field_are_an_error():
    raw = {"training": {"memory": {"reserved": "1 GiB"}, "reserved_memory": "2 GiB"}}
    message = (
        r"^a: training\.reserved_memory is called training\.memory\.reserved now; allowed: one of "
    )
    with pytest.raises(ValueError, match=message):
        with_names_of_today(raw, "scenarios", where="a")


def test_something_without_fields_is_left_for_validation_to_name():
    raw = {"training": 5}
    assert with_names_of_today(raw, "scenarios", where="a") is raw


def test_earlier_rates_of_a_transport_have_no_interval_and_are_refused_with_the_form(tmp_path):
    raw, _ = read_profile("transports", "ideal")
    rates = {"nic_efficiency: 0.88", "nvlink_efficiency: 0.78"}
    rest = [f"{key}: {value}" for key, value in raw.items() if key not in ("achieved", "sources")]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join([*rates, *rest]), encoding="utf-8")
    note = r"mine\.yaml: nic_efficiency is called achieved\.nic now, nvlink_efficiency is called "
    message = r"achieved\.nic: 0\.88 has no interval; allowed: value, low, high and source, such as"
    with pytest.warns(FutureWarning, match=note), pytest.raises(ValueError, match=message):
        load_transport(str(path))


def test_no_earlier_name_is_a_field_of_today():
    of_calibration, of_transport = (
        set(model.model_fields) for model in (CalibrationProfile, TransportProfile)
    )
    assert of_calibration.isdisjoint(EARLIER_NAMES["calibrations"])
    assert of_transport.isdisjoint(EARLIER_NAMES["transports"])
