"""Low-latency all-to-all: published rows come back, other sizes follow bytes."""

import pytest

from hardware_profiles.low_latency_kernels import (
    known_low_latency,
    load_low_latency,
    message_bytes,
    wire_time,
)


@pytest.mark.parametrize("name", known_low_latency())
@pytest.mark.parametrize("operation", ["dispatch", "combine"])
def test_the_published_rows_come_back(name, operation):
    profile = load_low_latency(name)
    for row in profile.rows:
        wire = wire_time(
            profile,
            operation,
            copies=profile.tokens * profile.top_k,
            hidden=profile.hidden,
            ranks=row.ranks,
            link_bandwidth=profile.link_bandwidth,
        )
        total = wire + profile.intercept(operation).value
        assert total == pytest.approx(getattr(row, operation), rel=1e-9)


def test_bytes_of_a_copy_are_those_that_deepep_counts():
    assert message_bytes("dispatch", 7168) == 7168 + 224 + 16
    assert message_bytes("combine", 7168) == 14336


def test_half_the_copies_take_half_the_wire_time_and_twice_the_link_too():
    profile = load_low_latency("deepep_h800_rdma")

    def wire(copies, bandwidth):
        return wire_time(
            profile, "combine", copies=copies, hidden=7168, ranks=144, link_bandwidth=bandwidth
        )

    assert wire(512, 50e9) == pytest.approx(wire(1024, 50e9) / 2)
    assert wire(1024, 100e9) == pytest.approx(wire(1024, 50e9) / 2)


def test_a_group_size_between_rows_achieves_what_lies_between():
    profile = load_low_latency("deepep_h800_rdma")
    at_64, at_72, at_128 = (profile.fraction("dispatch", ranks) for ranks in (64, 72, 128))
    assert at_128 < at_72 < at_64
    assert profile.fraction("dispatch", 320) == profile.fraction("dispatch", 256)
    assert profile.covers(72)
    assert not profile.covers(320)
    assert not profile.is_measured(72)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="known: deepep_h200_nvlink"):
        load_low_latency("deepep")
