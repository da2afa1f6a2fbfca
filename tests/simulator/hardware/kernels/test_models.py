"""Who predicts a kernel family."""

import pytest
from cost_models import WITHOUT_TRACE, operator

from simulator.hardware.costs import NotCalibrated


def test_a_class_without_any_row_is_not_guessed():
    cast = operator("quantize", dtype="bfloat16", out_dtype="fp8_e4m3", rows=4096, columns=7168)
    with pytest.raises(NotCalibrated, match="memory-bound"):
        WITHOUT_TRACE.predict([cast], sms=132, overlapped=False)
