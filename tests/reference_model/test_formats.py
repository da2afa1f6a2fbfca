"""Bytes of stored matrices, worked out by hand."""

import pytest

from reference_model.formats import ACTIVATIONS, multiplied_as, nearest_type, weights_of


@pytest.mark.parametrize(
    ("dtype", "activations", "weights"),
    [
        ("bfloat16", 256 * 512 * 2, 256 * 512 * 2),
        # An FP32 scale for 128 values of a row, and for a block of 128 x 128.
        ("fp8_e4m3", 256 * (512 + 4 * 4), 256 * 512 + 2 * 4 * 4),
        ("fp8_e4m3_tensor", 256 * 512, 256 * 512),
        # A byte for 32 values.
        ("mxfp8_e4m3", 256 * (512 + 16), 256 * (512 + 16)),
        # Half a byte each, and a byte for 16 values.
        ("fp4_e2m1", 256 * (256 + 32), 256 * (256 + 32)),
        # BF16 through 4-bit weights with a BF16 scale for a group.
        ("w4a16_g32", 256 * 512 * 2, 256 * (256 + 2 * 16)),
        ("w4a16_g128", 256 * 512 * 2, 256 * (256 + 2 * 4)),
        ("e5m6", 256 * (768 + 4 * 4), 256 * 768 + 2 * 4 * 4),
    ],
)
def test_a_matrix_of_256_by_512_in_each_type(dtype, activations, weights):
    assert ACTIVATIONS[dtype].stored_bytes(256, 512) == activations
    assert weights_of(dtype).stored_bytes(256, 512) == weights
    assert weights_of(dtype).bytes_per_value == weights / (256 * 512)


def test_a_part_of_a_block_has_a_whole_scale():
    assert weights_of("fp8_e4m3").stored_bytes(1, 129) == 129 + 2 * 4
    assert weights_of("w4a16_g32").stored_bytes(3, 33) == 50 + 3 * 2 * 2


def test_tensor_cores_multiply_weights_of_four_bits_in_bf16():
    assert multiplied_as("w4a16_g32") == "bfloat16"
    assert multiplied_as("fp8_e4m3_tensor") == "fp8_e4m3"
    assert multiplied_as("mxfp8_e4m3") == "mxfp8_e4m3"
    assert nearest_type("mxfp8_e4m3") == "fp8_e4m3"
    assert nearest_type("w4a16_g128") == "bfloat16"
