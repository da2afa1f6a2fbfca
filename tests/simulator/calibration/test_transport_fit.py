"""Fitting a transport: known inputs come back, and the shipped one is what the fit gives."""

import pytest

from hardware_profiles.schema import load_transport
from simulator.calibration.transport_fit import FittedFigure, fit_transport, search


def test_known_efficiencies_come_back():
    def row(name, nic, nvlink, share):
        a, b = nic / 0.88, nvlink / 0.8
        time = 8e-6 + max(a, b) + min(a, b) * 12 * share
        return FittedFigure(name, time, nic, nvlink, 8e-6, share)

    fit = search(
        [
            row("one node", 0.0, 1e-3, 0.0),
            row("over nvlink", 0.6e-3, 1e-3, 0.003),
            row("over nics", 2e-3, 1e-3, 0.003),
            row("small", 0.15e-3, 0.0, 0.0),
        ]
    )
    assert fit.nic_efficiency == pytest.approx(0.88)
    assert fit.nvlink_efficiency == pytest.approx(0.80)
    assert fit.chunk_tokens == 12
    assert fit.largest < 1e-6


def test_the_shipped_transport_is_what_the_fit_gives():
    shipped = load_transport("deepep_h800")
    fit = fit_transport("deepep_h800")
    nic, nvlink = shipped.achieved.nic, shipped.achieved.nvlink
    assert (nic.value, nvlink.value) == pytest.approx((fit.nic_efficiency, fit.nvlink_efficiency))
    assert (nic.low, nic.high) == pytest.approx(fit.nic_range)
    assert (nvlink.low, nvlink.high) == pytest.approx(fit.nvlink_range)
    assert shipped.chunk_tokens == fit.chunk_tokens
    assert fit.largest < 0.08
    assert len(fit.rows) == 20
