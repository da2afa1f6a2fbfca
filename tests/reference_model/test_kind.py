"""Bytes of the matrices of a kernel family."""

from reference_model.kind import blocked, plain, tiled


def test_values_are_packed_into_whole_bytes():
    """3 x 5 of 12 bits are 180 bits."""
    assert plain("e5m6", 3, 5) == 23
    assert plain("float32", 2, 3, 4) == 96


def test_activations_have_a_scale_for_each_tile_and_weights_one_for_each_block():
    """Scales of 4 bytes for 128 columns: of 130 columns two a row, of 200 x 130 weights four."""
    assert tiled("fp8_e4m3", 200, 130) == 200 * 130 + 4 * 200 * 2
    assert blocked("fp8_e4m3", 3, 200, 130) == 3 * (200 * 130 + 4 * 2 * 2)
