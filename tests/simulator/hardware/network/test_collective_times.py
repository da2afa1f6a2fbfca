"""Times of collective operations from measured ones, each worked out by hand."""

import numpy as np
import pytest

from hardware_profiles.fields import to_profile
from hardware_profiles.measured_collectives import MeasuredCollectives
from hardware_profiles.schema import load_gpu
from simulator.hardware.network.collective_times import (
    CollectiveTimes,
    SizeCurve,
    measured_collectives,
    sent_share,
)

LEFT_OUT = [
    {"up_to": "1 MiB", "rows": 9, "median": 0.02, "p90": 0.05, "quantile_80": 0.3},
    {"up_to": "1 GiB", "rows": 9, "median": 0.02, "p90": 0.05, "quantile_80": 0.4},
]
FLAT = {"1 KiB": "10 us", "1 MiB": "10 us"}
"""Next to no bytes; beyond 1 MiB at a constant rate."""


def times(*, nvlink="400 GB/s", **operations):
    """{operation: [(GPUs, points)]}, measured at 400 GB/s; other numbers of GPUs off by 0.4."""
    measured = to_profile(
        MeasuredCollectives,
        {
            "gpu": "h100_sxm",
            "nvlink_bandwidth": "400 GB/s",
            "library": "NCCL",
            "other_link": 1.25,
            "operations": [
                {
                    "operation": name,
                    "curves": [{"ranks": ranks, "points": points} for ranks, points in curves],
                    "left_out": LEFT_OUT,
                    "other_ranks": 0.4,
                }
                for name, curves in operations.items()
            ],
        },
        where="made up",
    )
    rate = {"400 GB/s": 400e9, "200 GB/s": 200e9}[nvlink]
    return CollectiveTimes.of(measured, nvlink_bandwidth=rate)


def seconds(found):
    return found.seconds.item()


def test_a_curve_is_a_monotone_cubic_of_logarithms():
    # Rises of 1 and 2 octaves; the slope between them is their harmonic mean, 4/3. Half an octave
    # in: 1/8 of the first slope, 1/2 of the rise, less 1/8 of the second slope: 11/24.
    curve = SizeCurve.through({1024.0: 1.0, 2048.0: 2.0, 4096.0: 8.0}, ranks=2)
    assert curve.log_at(1024 * 2**0.5) == pytest.approx(np.log(2) * 11 / 24, rel=1e-12)
    assert curve.log_at(2048) == pytest.approx(np.log(2), rel=1e-12)
    # Below the first point nothing is faster, beyond the last the rate stays.
    assert curve.log_at(1) == pytest.approx(0.0, abs=1e-12)
    assert curve.log_at(8192) == pytest.approx(np.log(16), rel=1e-12)
    assert curve.shortest == 1.0


def test_slopes_weigh_rises_by_the_stretches_on_either_side():
    """Logarithms 0, 1, 3, 4 of sizes and 0, 1, 2, 4 of seconds: rises of 1, 1/2 and 2 over 1, 2 and
    1. Slopes of 9 / (5 / 1 + 4 / (1/2)) and 9 / (4 / (1/2) + 5 / 2) between them."""
    points = {np.exp(x): np.exp(y) for x, y in ((0, 0), (1, 1), (3, 2), (4, 4))}
    curve = SizeCurve.through(points, ranks=2)
    assert curve.slopes == pytest.approx([1, 9 / 13, 9 / 10.5, 2], rel=1e-9)
    # A quarter into the middle stretch: 27/32 and 5/32 of its ends, 9/64 and -3/64 of its slopes,
    # twice as long.
    expected = 27 / 32 * 1 + 5 / 32 * 2 + 2 * (9 / 64 * 9 / 13 - 3 / 64 * 9 / 10.5)
    assert curve.log_at(np.exp(1.5)) == pytest.approx(expected, rel=1e-9)


def test_a_flat_stretch_stays_flat():
    curve = SizeCurve.through({1024.0: 1.0, 2048.0: 1.0, 4096.0: 8.0}, ranks=2)
    assert curve.log_at(1500) == pytest.approx(0.0, abs=1e-12)


def test_a_gpu_sends_all_shares_but_its_own_and_twice_that_to_sum_and_spread():
    assert [sent_share(name, 4) for name in ("all_gather", "all_to_all", "all_reduce", "send")] == [
        0.75,
        0.75,
        1.5,
        1.0,
    ]


def test_between_measured_numbers_of_gpus_logarithms_are_linear():
    # 10 us between 2 GPUs, 40 us between 8: 4 are halfway in octaves.
    found = times(all_gather=[(2, FLAT), (8, {"1 KiB": "40 us", "1 MiB": "40 us"})]).predict(
        "all_gather", 2**16, ranks=4
    )
    assert seconds(found) == pytest.approx(20e-6, rel=1e-12)
    # Sizes are off by 0.3, numbers of GPUs by 0.4: together 0.5.
    assert found.low.item() == pytest.approx(20e-6 * np.exp(-0.5), rel=1e-12)
    assert found.high.item() == pytest.approx(20e-6 * np.exp(0.5), rel=1e-12)
    assert found.provenance_names() == ["extrapolated"]


def test_more_gpus_than_measured_send_as_many_bytes_and_start_later():
    # 8 GPUs send 7/8 of the size and 16 GPUs 15/16: as 15/14 of 7 MiB, 7.5 times 1 MiB, between 8.
    # A further GPU adds (40 - 10) / 6 = 5 us to the shortest, and 16 are 8 more.
    slow = {"1 KiB": "40 us", "1 MiB": "40 us"}
    found = times(all_gather=[(2, FLAT), (8, slow)]).predict("all_gather", 7 * 2**20, ranks=16)
    assert seconds(found) == pytest.approx(7.5 * 40e-6 + 8 * 5e-6, rel=1e-12)
    # Two of 4 and 8 save 2 (40 - 30) / 4 us of 30; with one curve nothing says how much.
    pair = [(4, {"1 KiB": "30 us", "1 MiB": "30 us"}), (8, slow)]
    found = times(all_gather=pair).predict("all_gather", 2**12, ranks=2)
    assert seconds(found) == pytest.approx(25e-6, rel=1e-12)
    found = times(all_to_all=[(4, FLAT)]).predict("all_to_all", 3 * 2**20, ranks=2)
    assert seconds(found) == pytest.approx(20e-6, rel=1e-12)


def test_at_half_the_link_rate_bytes_count_twice():
    slow = times(nvlink="200 GB/s", send=[(2, FLAT)]).predict("send", 2**20, ranks=2)
    assert seconds(slow) == pytest.approx(20e-6, rel=1e-12)
    # Errors of sizes beyond 1 MiB, 0.4, and of other links, log 1.25.
    assert slow.high.item() == pytest.approx(20e-6 * np.exp(np.hypot(0.4, np.log(1.25))), rel=1e-12)
    assert slow.provenance_names() == ["extrapolated"]


def test_provenance_says_what_was_measured():
    known = times(send=[(2, FLAT)])
    assert known.predict("send", 2**20, ranks=2).provenance_names() == ["measured"]
    assert known.predict("send", 2**19, ranks=2).provenance_names() == ["interpolated"]
    assert known.predict("send", 2**21, ranks=2).provenance_names() == ["extrapolated"]


def test_no_bytes_take_as_long_as_the_fewest_that_were_measured():
    known = times(send=[(2, {"1 KiB": "10 us", "1 MiB": "20 us"})])
    none = known.predict("send", 0.0, ranks=2)
    assert seconds(none) == pytest.approx(10e-6, rel=1e-12)
    assert none.provenance_names() == ["extrapolated"]
    assert known.shortest("send", 2) == seconds(none)


def test_sums_of_integers_have_own_rows_or_those_of_all_types():
    known = times(all_reduce=[(2, FLAT)])
    found = known.predict("all_reduce", 2**10, ranks=2, types="int8")
    assert seconds(found) == pytest.approx(10e-6, rel=1e-12)


def test_what_was_not_measured_is_refused():
    known = times(send=[(2, FLAT)])
    assert not known.knows("all_gather")
    with pytest.raises(ValueError, match="all_gather: no rows of NCCL on h100_sxm; known: send"):
        known.predict("all_gather", 1024, ranks=2)
    with pytest.raises(ValueError, match="send: ranks: 1 is not allowed: 2 or more"):
        known.predict("send", 1024, ranks=1)


def test_a_gpu_without_measured_collectives_has_none_and_another_library_says_so():
    h100 = load_gpu("h100_sxm")
    assert measured_collectives("nccl", gpu=h100).knows("all_gather")
    other = h100.model_copy(update={"name": "other"})
    assert measured_collectives("nccl", gpu=other).knows("all_gather")
    assert measured_collectives("nccl", gpu=other.model_copy(update={"sms": 100})) is None
    assert measured_collectives("ideal", gpu=h100) is None
    with pytest.raises(ValueError, match="transport deepep_h800 has no measured operations"):
        measured_collectives("deepep_h800", gpu=load_gpu("h800_sxm"))


def test_fewer_gpus_than_measured_save_at_most_half_and_the_largest_sizes_are_the_least_known():
    # 10 us between 4 GPUs, 50 us between 8: a GPU fewer saves 10 us, two of them all of it.
    slow = {"1 KiB": "50 us", "1 MiB": "50 us"}
    found = times(send=[(4, FLAT), (8, slow)]).predict("send", 2**12, ranks=2)
    assert seconds(found) == pytest.approx(5e-6, rel=1e-12)
    # 2 GiB are beyond all sizes that were judged: off by the 0.4 of the largest.
    found = times(send=[(2, FLAT)]).predict("send", 2**31, ranks=2)
    assert found.high.item() / seconds(found) == pytest.approx(np.exp(0.4), rel=1e-12)
