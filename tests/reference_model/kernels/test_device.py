"""Which devices run the FP8 kernels."""

from types import SimpleNamespace

import pytest
import torch

from reference_model.kernels import load_backend
from reference_model.kernels.device import check_device
from reference_model.kernels.triton_backend import KERNELS as kernels

E4M3 = torch.float8_e4m3fn


def test_a_gpu_without_fp8_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(ValueError, match=r"NVIDIA A100: compute capability 8.0 has no FP8"):
        check_device(SimpleNamespace(is_cuda=True, device="cuda:0"))


def test_a_device_without_fp8_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="device cpu: a CUDA device of compute"):
        kernels.quantize_tiles(torch.ones(1, 128), power_of_two_scales=False)
    with pytest.raises(ValueError, match="device cpu"):
        load_backend("library").gemm_fp8(
            torch.zeros(16, 128).to(E4M3),
            torch.zeros(16, 1),
            torch.zeros(128, 128).to(E4M3),
            torch.zeros(1, 1),
            out_dtype=torch.bfloat16,
        )
