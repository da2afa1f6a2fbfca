"""Measured rows of one family, and their shapes."""

import numpy as np

from reference_model.trace import Operator
from simulator.hardware.kernels.measured_rows import Rows, extents_of, fingerprints, shapes_of
from simulator.hardware.kernels.roofline import Ideal, batch_of


def product(m, n):
    return Operator(
        name="gemm",
        kind="gemm",
        phase="forward",
        segment="mlp",
        dtype="fp8_e4m3",
        out_dtype="bfloat16",
        sizes=(("k", 512), ("m", m), ("n", n)),
        recompute=False,
        accumulate=False,
    )


def test_products_of_one_shape_differ_in_their_rows_alone():
    batch = batch_of([product(1, 64), product(1, 128), product(7, 64)])
    shapes = {shape: places.tolist() for shape, places in shapes_of(batch)}
    assert shapes == {(512, 64): [0, 2], (512, 128): [1]}
    assert extents_of(batch).tolist() == [1, 1, 7]


def test_of_equal_rows_the_direct_one_of_most_repeats_stays():
    count = 3
    rows = Rows(
        batch=batch_of([product(1, 64)] * count),
        sms=np.full(count, 132.0),
        log_seconds=np.array([1.0, 2.0, 3.0]),
        ideal=Ideal(np.ones(count), np.ones(count), 0.0),
        weights=np.array([1.0, 8.0, 8.0]),
        direct=np.array([True, False, True]),
        spread=np.zeros(count),
        slowed=np.ones(count),
    )
    assert rows.without_redundant().log_seconds.tolist() == [3.0]


def test_equal_sizes_have_equal_fingerprints_and_their_order_counts():
    sizes = np.array([[1, 2], [2, 1], [1, 2]], dtype=np.int64)
    first, swapped, same = fingerprints(sizes).tolist()
    assert first == same != swapped
