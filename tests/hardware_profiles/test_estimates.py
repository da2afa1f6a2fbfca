"""An estimate says within what interval it is known."""

import pytest

from hardware_profiles.estimates import TimeEstimate
from hardware_profiles.schema import load_calibration


def test_an_interval_must_contain_its_value():
    message = (
        r"beside_compute\.dispatch: needs low <= value <= high, found .*, or another high with it$"
    )
    with pytest.raises(ValueError, match=message):
        load_calibration("h800_sxm", {"all_to_all.beside_compute.dispatch.value": 3.0})
    wider = {
        "all_to_all.beside_compute.dispatch.value": 3.0,
        "all_to_all.beside_compute.dispatch.high": 3.5,
    }
    assert load_calibration("h800_sxm", wider).all_to_all.beside_compute.dispatch.value == 3.0


@pytest.mark.parametrize("low", ["10 us", "0 s"])
def test_an_interval_of_more_than_a_million_times_says_nothing_and_is_refused(low):
    # 10 us to 10 s is a million times.
    widest = {"value": "10 us", "low": low, "high": "10 s", "source": "a guess"}
    assert TimeEstimate(**widest).high == 10.0
    with pytest.raises(ValueError, match=r"high is 2e\+06 times 1e-05; allowed: up to 1e\+06"):
        TimeEstimate(**widest | {"high": "20 s"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0.9, "transfers.nic: 0.9 has no interval; allowed: value, low, high and source"),
        (True, "transfers.nic: true is not allowed: it must be fields"),
    ],
)
def test_a_number_is_asked_for_its_interval_and_anything_else_for_fields(given, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        load_calibration("h800_sxm", {"transfers.nic": given})
