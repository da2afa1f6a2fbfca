"""One thread: the models of these tests are smaller than the cost of sharing them out."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
