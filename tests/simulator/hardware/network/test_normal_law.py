"""Times of normal kernels from copies, links and a start, worked out by hand."""

import numpy as np
import pytest

from simulator.hardware.network.normal_law import NormalLaw


def seconds(law, *, copied, sms, links):
    return law.seconds(np.array([copied]), np.array([sms]), np.array([links])).item()


def test_the_slower_of_copies_and_links_decides_with_a_rounded_corner():
    # 40 GB on 4 SMs at 10 GB/s are 1 s of copies; a square corner with 1 s of links: sqrt(2).
    law = NormalLaw(start=0.0, ramp=1e-9, softness=8.0, copy=10e9, corner=2.0)
    assert seconds(law, copied=40e9, sms=4, links=1.0) == pytest.approx(2**0.5, rel=1e-8)
    # 3 s of copies beside 4 s of links: 5.
    assert seconds(law, copied=120e9, sms=4, links=4.0) == pytest.approx(5.0, rel=1e-8)


def test_a_pipeline_fills_and_a_start_is_added():
    # 2 s of copies and no links; filling adds 2 (1 - 1/e); with softness 1 the start adds 3 s.
    law = NormalLaw(start=3.0, ramp=2.0, softness=1.0, copy=10e9, corner=4.0)
    expected = 3.0 + 2.0 + 2.0 * (1 - np.exp(-1.0))
    assert seconds(law, copied=20e9, sms=1, links=0.0) == pytest.approx(expected, rel=1e-12)
    # A start of 3 s and a payload of 4 s, rounded by squares: 5 s.
    soft = NormalLaw(start=3.0, ramp=1e-9, softness=2.0, copy=10e9, corner=4.0)
    assert seconds(soft, copied=40e9, sms=1, links=0.0) == pytest.approx(5.0, rel=1e-8)


def test_what_links_took_is_found_in_a_kernels_time():
    law = NormalLaw(start=30e-6, ramp=50e-6, softness=1.2, copy=10e9, corner=4.0)
    took = seconds(law, copied=200e6, sms=20, links=2e-3)
    # 200 MB on one SM take 20 ms: nothing is left for links in 10 ms.
    links = law.link_seconds(np.array([took, 10e-3]), np.array([200e6, 200e6]), np.array([20, 1]))
    assert links == pytest.approx([2e-3, 0.0], rel=1e-9, abs=1e-9)
