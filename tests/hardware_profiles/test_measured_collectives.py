"""Measured collective operations as a transport's file states them, and what it may not say."""

import pytest

from hardware_profiles.fields import to_profile
from hardware_profiles.measured_collectives import MeasuredCollectives

LEFT_OUT = {"up_to": "1 MiB", "rows": 3, "median": 0.02, "p90": 0.05, "quantile_80": 0.04}


def stated(**changed):
    """One operation between two GPUs, 10 us at 1 KiB and 30 us at 1 MiB."""
    operation = {
        "operation": "all_gather",
        "curves": [{"ranks": 2, "points": {"1 KiB": "10 us", "1 MiB": "30 us"}}],
        "left_out": [LEFT_OUT],
        "other_ranks": 0.1,
    } | changed
    return {
        "gpu": "h100_sxm",
        "nvlink_bandwidth": "450 GB/s",
        "library": "NCCL",
        "other_link": 1.25,
        "operations": [operation],
    }


def read(**changed):
    return to_profile(MeasuredCollectives, stated(**changed), where="mine.yaml")


def test_sizes_and_times_are_read_with_their_units():
    (operation,) = read().operations
    assert operation.types == "any"
    assert operation.curves[0].points == pytest.approx({1024.0: 10e-6, 1048576.0: 30e-6})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"curves": [{"ranks": 2, "points": {"1 MiB": "30 us"}}]},
            "allowed: at least two sizes, ascending",
        ),
        (
            {"curves": [{"ranks": 2, "points": {"1 KiB": "30 us", "1 MiB": "10 us"}}]},
            "allowed: times above 0 that never fall with size",
        ),
        ({"curves": []}, r"curves: ranks \[\]; allowed: at least one, ascending"),
        ({"left_out": [LEFT_OUT, LEFT_OUT]}, "left_out: up_to .* allowed: at least one, ascending"),
        ({"operation": "broadcast"}, "operations.0.operation: 'broadcast' is not allowed"),
    ],
)
def test_what_no_measurement_can_be_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        read(**changed)


def test_an_operation_is_stated_once_for_its_types():
    twice = stated()
    twice["operations"] *= 2
    with pytest.raises(ValueError, match="operations: allowed: at least one, each once per types"):
        to_profile(MeasuredCollectives, twice, where="mine.yaml")
