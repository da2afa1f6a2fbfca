"""Transfers between the GPUs of one host: physics, monotone curves and kinds that are modelled."""

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_gpu
from hardware_profiles.tables import Measurement, load_measurements, table_path
from simulator.hardware.network.transfer_times import (
    LINK_KINDS,
    MODELLED_ON,
    MOST_ROWS,
    TransferTimes,
    fit_link,
    link_tables,
    physics,
    wire_bytes,
)
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, MODELLED

SIZES = 2 ** np.arange(8, 34)


@pytest.fixture(scope="module")
def times():
    profile = load_calibration("h200_sxm")
    rows = load_measurements(table_path("host/h200_sxm_transfers"))
    return TransferTimes(gpu=load_gpu("h200_sxm"), fits=profile.fits).fit(rows)


def row(kind, size, seconds, ranks=2):
    return Measurement(
        kind=kind,
        sizes=(("bytes", size), ("ranks", ranks)),
        dtype="bfloat16",
        sms=132,
        seconds=seconds,
        spread=None,
        source="test",
        conditions=(("set", "links"),),
    )


@pytest.mark.parametrize("count", [20, 3 * MOST_ROWS])
def test_launch_start_and_share_are_found_again(count):
    wire = np.geomspace(1e3, 1e9, count)
    bandwidth = 450e9
    seconds = np.maximum(25e-6, 8e-6 + wire / (0.8 * bandwidth))
    link = fit_link(wire, seconds, bandwidth)
    assert link.launch_s == pytest.approx(25e-6, rel=0.01)
    assert link.start_s == pytest.approx(8e-6, rel=0.15)
    assert link.share == pytest.approx(0.8, rel=0.01)
    assert np.allclose(physics(wire, link, bandwidth), seconds, rtol=0.02)


@pytest.mark.parametrize("kind", sorted({*LINK_KINDS, *MODELLED_ON}))
def test_no_transfer_is_faster_than_a_smaller_one_or_than_the_link(times, kind):
    told = times.predict(kind, SIZES, ranks=2)
    assert (np.diff(told.seconds) >= 0).all()
    ceiling = wire_bytes(kind, SIZES, 2) / load_gpu("h200_sxm").nvlink_bandwidth
    assert (told.low >= ceiling).all()
    assert (told.low <= told.seconds).all()
    assert (told.seconds <= told.high).all()


def test_the_rate_saturates_with_size(times):
    told = times.predict("peer_copy", SIZES, ranks=2)
    rate = SIZES / told.seconds
    assert (np.diff(rate) > -1e-6 * rate[1:]).all()
    assert rate[-1] / load_gpu("h200_sxm").nvlink_bandwidth == pytest.approx(0.88, abs=0.01)


def test_provenance_says_what_a_time_rests_on(times):
    sizes = np.array([2**20, 2**20 + 512, 2**31])
    of_send = times.predict("send", sizes, ranks=2).provenance.tolist()
    assert of_send == [MEASURED, INTERPOLATED, EXTRAPOLATED]
    assert set(times.predict("send", sizes, ranks=4).provenance.tolist()) == {EXTRAPOLATED}
    assert set(times.predict("all_reduce", sizes, ranks=2).provenance.tolist()) == {MODELLED}


def test_collectives_without_rows_take_the_time_of_the_same_bytes_on_the_wire(times):
    size = np.array([2**26])
    exchanged = times.predict("all_to_all", size, ranks=2)
    for kind in ("all_gather", "reduce_scatter"):
        told = times.predict(kind, size, ranks=2)
        assert told.seconds == pytest.approx(exchanged.seconds)
        # What a send says of the same bytes lies inside the interval.
        alone = times.predict("send", size // 2, ranks=2).seconds
        assert told.low <= alone * (1 + 1e-9)
        assert alone <= told.high * (1 + 1e-9)
    twice = times.predict("all_reduce", size, ranks=2)
    assert twice.seconds == pytest.approx(times.predict("all_to_all", 2 * size, ranks=2).seconds)


def test_transfers_need_bytes_and_ranks():
    with pytest.raises(ValueError, match="needs bytes \\(at least 1\\) and ranks"):
        link_tables([row("send", 1024, 1e-5, ranks=1)])


def test_what_no_row_answers_for_is_an_error():
    nothing = TransferTimes(gpu=load_gpu("h200_sxm"), fits=()).fit([])
    with pytest.raises(ValueError, match="no row of all_to_all or send"):
        nothing.predict("all_gather", np.array([1024]), ranks=2)
    with pytest.raises(ValueError, match="'broadcast' is unknown"):
        nothing.predict("broadcast", np.array([1024]), ranks=2)
