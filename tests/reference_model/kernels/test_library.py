"""What the library backend hands to cuBLAS; its products are tested on a GPU."""

import pytest
import torch

from reference_model.kernels.library import _column_major


@pytest.mark.parametrize("tiles", [1, 3])
def test_scales_of_some_rows_get_the_strides_that_cublas_checks(tiles):
    scales = torch.rand(tiles, 300).t()[4:76]  # the rows of one expert
    turned = _column_major(scales)
    assert turned.stride() == (1, 72)
    assert torch.equal(turned, scales)
