"""Flows of a lane move at one rate; lanes of a stream wait for each other."""

import numpy as np
import pytest
from fabrics import BARE, check_conservation, run
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.hardware.network.fairness import Incidence, fill
from simulator.hardware.network.flows import make_flows
from simulator.hardware.network.lanes import Lanes
from simulator.hardware.network.topology import build_fabric

FABRIC = build_fabric("fat_tree_2", BARE)
"""Links of 1 byte/s."""


def flows(*ways, lanes=None, also=None):
    """(source, destination, bytes) each."""
    source, destination, size = (np.array(part) for part in zip(*ways, strict=True))
    found = make_flows(source, destination, size.astype(float))
    found.lanes = lanes
    return found


def lanes(*of_flows, lead=1.0, stream=None):
    count = max(of_flows) + 1
    streams = np.arange(count) if stream is None else np.array(stream)
    return Lanes(np.array(of_flows), streams, np.ones(count), lead)


def finishes(*batches):
    done, network, _ = run(FABRIC, *((0.0, one, 0) for one in batches))
    check_conservation(FABRIC, network, batches)
    return [next(one for one in done if one.flows is batch).finish.tolist() for batch in batches]


def test_the_slowest_hop_sets_the_rate_of_its_lane():
    """1 byte from 0 to 1, and 2 bytes on to 2 in step: both take the 2 s of the second."""
    assert finishes(flows((0, 1, 1), (1, 2, 2), lanes=lanes(0, 0))) == [[2.0, 2.0]]


def test_what_a_lane_does_not_use_goes_to_others():
    """The lane sends at half the rate of link 0, so that another flow of 1 byte gets the rest."""
    (alone, other) = finishes(flows((0, 1, 1), (1, 2, 2), lanes=lanes(0, 0)), flows((0, 3, 1)))
    assert (alone, other) == ([2.0, 2.0], [2.0])


BUSY = flows((4, 3, 1), (5, 3, 1), (6, 3, 1))
"""With the stream below, four into GPU 3: a quarter of its link each, until 4 s."""


@pytest.mark.parametrize(
    ("lead", "first"),
    [
        # No order: 3/4 of link 0.
        (1.0, 4 / 3),
        # 1/4 ahead after 1/2 s, when 3/8 are sent; the rest at a quarter.
        (0.25, 0.5 + (5 / 8) / 0.25),
        # In step, but for a thousandth.
        (0.001, 4 - 0.001 / 0.25),
    ],
)
def test_a_slow_destination_holds_up_the_others_of_its_stream(lead, first):
    """GPU 0 sends 1 byte to each of 2 and 3, in one order."""
    stream = flows((0, 2, 1), (0, 3, 1), lanes=lanes(0, 1, lead=lead, stream=[0, 0]))
    found, _ = finishes(stream, BUSY)
    assert found == pytest.approx([first, 4.0], rel=1e-5)


def test_a_lane_that_waited_goes_on_when_the_other_has_caught_up():
    """Others leave GPU 3 alone from 2 s on, when 1/2 is there and 3/4 at GPU 2: both then share
    link 0 until the first is through at 2.5 s, and the second takes what is left alone."""
    busy = flows((4, 3, 0.5), (5, 3, 0.5), (6, 3, 0.5))
    stream = flows((0, 2, 1), (0, 3, 1), lanes=lanes(0, 1, lead=0.25, stream=[0, 0]))
    found, _ = finishes(stream, busy)
    assert found == pytest.approx([2.5, 2.75], rel=1e-5)


def test_streams_do_not_wait_for_each_other():
    apart = flows((0, 2, 1), (0, 3, 1), lanes=lanes(0, 1, lead=0.25))
    found, _ = finishes(apart, BUSY)
    assert found == pytest.approx([4 / 3, 4.0])


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_joint_rates_are_max_min_fair(seed):
    """No resource is over its rate, flows of one number have one rate, and each of them crosses a
    full resource, itself or through its number, on which nobody is faster."""
    rng = np.random.default_rng(seed)
    count, resources = 12, 6
    capacity = rng.uniform(0.5, 4.0, resources)
    paths = np.array([rng.choice(resources, 3, replace=False) for _ in range(count)])
    joint = rng.integers(0, 5, count)
    wide = np.concatenate([paths, resources + joint[:, None]], axis=1).astype(np.int32)
    incidence = Incidence(wide, resources + 5)
    weight = rng.uniform(0.1, 2.0, count)
    rates = fill(
        incidence, np.append(capacity, np.full(5, np.inf)), weight,
        load=incidence.load(weight), joint=joint,
    )  # fmt: skip
    used = np.zeros(resources)
    np.add.at(used, paths.ravel(), np.repeat(rates * weight, 3))
    assert (used <= capacity * (1 + 1e-9)).all()
    full = used >= capacity * (1 - 1e-9)
    for number in np.unique(joint):
        mine = np.flatnonzero(joint == number)
        assert np.ptp(rates[mine]) == 0
        crossed = np.unique(paths[mine])
        fastest = [rates[(paths == one).any(axis=1)].max() for one in crossed if full[one]]
        assert fastest, "a rate could be higher"
        assert min(fastest) <= rates[mine[0]] * (1 + 1e-9)
