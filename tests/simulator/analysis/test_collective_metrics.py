"""The figures of collective jobs, and the published measurements beside them."""

import json

import pytest

from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario


def measured(name, *changes):
    return simulate(load_scenario(name, changes)).metrics


def test_the_figures_of_64_gpus_are_those_of_the_operation_and_go_into_json():
    found = measured("all_to_all_64")
    seconds = 63 * 114_688 / 50e9 + 4e-6
    assert found["completion_s"] == pytest.approx(seconds, rel=1e-9)
    assert found["bytes_total"] == 64 * 63 * 114_688
    assert found["bus_bandwidth_bytes_per_s"] == pytest.approx(63 * 114_688 / seconds, rel=1e-9)
    assert set(found["links"][0]) == {"name", "bytes", "utilisation"}
    assert found["wall_clock_s"] > 0
    json.dumps(found, allow_nan=False)


def test_a_run_that_a_failure_cuts_off_has_no_completion_and_names_what_stalled():
    found = measured("all_to_all_64", "cluster.failures=[node:5@10us]")
    assert found["completion_s"] is None
    assert "node5/gpu0" in found["stalled"][0]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("scenario", "gpus"),
    [("deepep_normal", "[8, 16, 32]"), ("deepep_low_latency", "[8, 16, 32, 64]")],
)
def test_deepep_rows_are_met_within_eight_percent(scenario, gpus):
    published = measured(scenario, f"vary.operation.gpus={gpus}")["published"]
    assert {row["kind"] for row in published} == {"calibrated"}
    assert len(published) == 2 * gpus.count(",") + 2
    for row in published:
        assert abs(row["error"]) < 0.08, row


def test_published_times_of_the_mixed_form_are_predicted_beyond_one_node():
    published = measured("deepep_low_latency_mixed")["published"]
    errors = {row["name"]: row["error"] for row in published}
    assert {row["kind"] for row in published} == {"predicted"}
    for gpus in (32, 64):
        for operation in ("dispatch", "combine"):
            assert abs(errors[f"{operation} low_latency_mixed {gpus} GPUs"]) < 0.01


def test_published_ratios_of_256_mib_stand_beside_no_other_size():
    assert len(measured("roce_routing")["published"]) == 6
    smaller = measured("roce_routing", "collective.operation.bytes_per_gpu=16 MiB")
    assert smaller["published"] == []


def test_the_same_seed_gives_the_same_result():
    changes = ("collective.operation.sizes=hot_experts", "collective.operation.gpus=16")
    first, second = (measured("all_to_all_64", *changes) for _ in range(2))
    first.pop("wall_clock_s"), second.pop("wall_clock_s")
    assert first == second
    other = measured("all_to_all_64", *changes, "seed=1")
    assert other["completion_s"] != first["completion_s"]
