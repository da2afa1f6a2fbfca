"""What the decode probe measures, and where."""

import pytest
import torch

from reference_model import decode_probe


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="decode_probe measures a CUDA GPU; there is none"):
        decode_probe.main()
