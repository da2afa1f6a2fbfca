"""What a recorded input says of its tensors, and how long a recording is."""

import numpy as np
import pytest

from simulator.workload.profile.recording import HostInput, Kernel, Trace


@pytest.mark.parametrize(
    ("type_name", "shapes", "is_tensor", "elements", "width"),
    [
        ("c10::BFloat16", ((4, 6),), True, 24, 2),
        ("float", ((),), True, 1, 4),  # a tensor of no dimension holds one number
        ("TensorList", ((4, 6), (3,)), True, 27, None),
        ("TensorList", ((),), False, 1, None),  # too long a list to be recorded
        ("Scalar", ((),), False, 1, None),
        ("", ((),), False, 1, None),
        ("c10::complex<float>", ((2,),), True, 2, None),
    ],
)
def test_an_input_knows_its_elements_and_their_bytes(
    type_name, shapes, is_tensor, elements, width
) -> None:
    found = HostInput(type_name, shapes)
    assert (found.is_tensor, found.elements, found.width) == (is_tensor, elements, width)


def test_a_recording_lasts_to_the_end_of_its_last_kernel() -> None:
    def kernel(seconds: float) -> Kernel:
        return Kernel("k", "kernel", 7, seconds, None, (1, 2, 3), 128, 0, 0, 0.0, 0)

    kernels = (kernel(5.0), kernel(1.0))
    trace = Trace("t.json", (), None, None, kernels, np.array([0.0, 2.0]), 0.0, (), (), (), ())
    assert trace.measured_span_s == 5.0
    assert kernels[0].blocks == 6
