"""Overrides: paths from the root of a scenario, fields of its job with or without the job."""

import pytest

from simulator.scenario.overrides import check_paths, full_path, parse_override, rooted

TRAINING = {"model": "deepseek_v3", "training": {"pp": 16}}


def test_a_value_is_read_as_yaml():
    assert parse_override("training.stages=[4, 4]") == ("training.stages", [4, 4])
    assert parse_override("cluster.node.nic.bandwidth=200 Gbit/s")[1] == "200 Gbit/s"
    for text in ("training.pp", "=8"):
        with pytest.raises(ValueError, match=f"^--set '{text}': allowed: path=value, such as"):
            parse_override(text)


def test_fields_of_the_job_may_be_given_without_it():
    assert full_path("pp", TRAINING, "a.yaml") == "training.pp"
    assert full_path("training.pp", TRAINING, "a.yaml") == "training.pp"
    assert rooted("model.hidden_size", TRAINING) == "model.hidden_size"
    with pytest.raises(ValueError, match=r"^a\.yaml: --set modle: unknown field 'modle'; did"):
        full_path("modle", TRAINING, "a.yaml")


def test_a_path_that_means_another_field_is_named_and_one_that_means_none_is_left_alone():
    check_paths(["training.pp", "qqqqqqqq"], TRAINING, "a.yaml")
    with pytest.raises(
        ValueError, match=r"^a\.yaml: --set training\.skew\.row: unknown field; did yo"
    ):
        check_paths(["training.skew.row"], TRAINING, "a.yaml")
