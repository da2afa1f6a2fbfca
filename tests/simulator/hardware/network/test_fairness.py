"""Max-min fair rates against an independent brute-force solver, and against hand-made cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.hardware.network.fairness import Incidence, fill, max_min_rates


def brute_force(paths: list[set[int]], capacity: list[float], count: list[float]) -> list[float]:
    """Raise every rate by the largest common step that no resource forbids, again and again."""
    rates = [0.0] * len(paths)
    growing = set(range(len(paths)))
    while growing:
        steps = []
        for resource, limit in enumerate(capacity):
            weight = sum(count[f] for f in growing if resource in paths[f])
            if weight:
                used = sum(count[f] * rates[f] for f, p in enumerate(paths) if resource in p)
                steps.append((max(limit - used, 0.0) / weight, resource))
        if not steps:
            for flow in growing:
                rates[flow] = float("inf")
            break
        step = min(steps)[0]
        for flow in growing:
            rates[flow] += step
        full = {r for s, r in steps if s <= step * (1 + 1e-9) + 1e-15}
        growing -= {f for f in growing if paths[f] & full}
    return rates


@st.composite
def systems(draw):
    resources = draw(st.integers(1, 8))
    capacity = draw(
        st.lists(
            st.one_of(st.sampled_from([1.0, 2.0, 3.0]), st.floats(0.1, 10.0)),
            min_size=resources,
            max_size=resources,
        )
    )
    paths = draw(
        st.lists(
            st.sets(st.integers(0, resources - 1), max_size=min(resources, 4)),
            min_size=1,
            max_size=20,
        )
    )
    count = draw(st.lists(st.integers(1, 5), min_size=len(paths), max_size=len(paths)))
    return paths, capacity, [float(c) for c in count]


def as_array(paths: list[set[int]]) -> np.ndarray:
    table = np.full((len(paths), max(1, *map(len, paths))), -1)
    for row, path in enumerate(paths):
        table[row, : len(path)] = sorted(path)
    return table


@settings(max_examples=300, deadline=None)
@given(systems())
def test_rates_equal_a_brute_force_solver_on_random_systems(system):
    paths, capacity, count = system
    rates = max_min_rates(as_array(paths), np.array(capacity), multiplicity=np.array(count))
    np.testing.assert_allclose(rates, brute_force(paths, capacity, count), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_every_flow_of_a_large_random_system_has_a_bottleneck(seed):
    # The definition itself: no resource over its capacity, and every flow crosses a full one on
    # which nobody is faster. Large enough for components and look-ups by resource.
    rng = np.random.default_rng(seed)
    resources, flows = 300, 4000
    block = rng.integers(0, 6, flows)  # flows of a block meet only each other
    paths = block[:, None] * 50 + np.argsort(rng.random((flows, 50)), axis=1)[:, :3]
    capacity = rng.uniform(1, 5, resources)
    rates = max_min_rates(paths, capacity)
    used = np.zeros(resources)
    np.add.at(used, paths.ravel(), np.repeat(rates, 3))
    assert (used <= capacity * (1 + 1e-9)).all()
    fastest = np.zeros(resources)
    np.maximum.at(fastest, paths.ravel(), np.repeat(rates, 3))
    full = used >= capacity * (1 - 1e-6)
    bottleneck = full[paths] & (rates[:, None] >= fastest[paths] * (1 - 1e-6))
    assert bottleneck.any(axis=1).all()


def test_only_active_flows_get_a_rate():
    incidence = Incidence(np.array([[0], [0], [0]], dtype=np.int32), 1)
    active = np.array([True, False, True])
    count = np.ones(3)
    load = incidence.load(count, np.flatnonzero(active))
    rates = fill(incidence, np.array([6.0]), count, load=load, active=active)
    assert rates.tolist() == [3.0, 0.0, 3.0]


def test_a_flow_that_crosses_nothing_is_unlimited():
    rates = max_min_rates(np.array([[-1], [0]]), np.array([2.0]))
    assert rates.tolist() == [np.inf, 2.0]
