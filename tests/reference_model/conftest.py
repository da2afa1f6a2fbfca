"""One thread: the models of these tests are smaller than the cost of sharing them out, and threads
that wait for a busy processor spin. Where there is no GPU, Triton kernels run in Triton's
interpreter, on CPU tensors."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
