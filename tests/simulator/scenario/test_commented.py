"""YAML that says behind each field what it is."""

import yaml

from simulator.scenario.commented import commented_yaml


def test_a_comment_stands_behind_its_field_and_the_rest_reads_back():
    raw = {
        "description": "10 requests/s: a service",
        "fleet": {"warm_up": "1 min", "prefill": {"ranks": 8}, "changes": ["gpus=8", "a=[1, 2]"]},
        "seed": 0,
    }
    text = commented_yaml(
        raw,
        {"fleet": "the job", "fleet.prefill.ranks": "of an instance", "fleet.absent": "of nothing"},
    )
    assert text == (
        "description: '10 requests/s: a service'\n"
        "fleet:  # the job\n"
        "  warm_up: 1 min\n"
        "  prefill:\n"
        "    ranks: 8  # of an instance\n"
        "  changes: [gpus=8, 'a=[1, 2]']\n"
        "seed: 0\n"
    )
    assert yaml.safe_load(text) == raw
