"""The backend "triton": every function of reference.py as a Triton kernel."""

from reference_model.kernels.triton_gemm import TritonProducts
from reference_model.kernels.triton_quantize import TritonCasts


class TritonKernels(TritonCasts, TritonProducts):
    """Casts and matrix products, all of them written in Triton."""


KERNELS = TritonKernels()
