"""An estimate says within what interval it is known."""

import pytest

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
