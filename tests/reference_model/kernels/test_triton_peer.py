"""Two ranks' memory in one process: rows land where their receiver reads them."""

import pytest
import torch

from reference_model.kernels.triton_peer import by_column, send_rows, sum_returned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ints(*values):
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def memory_of_two(shape, dtype):
    """Memory of two ranks, which holds 64 bytes of something else before the rows."""
    size = torch.tensor([], dtype=dtype).element_size()
    return [torch.zeros((64 // size + shape[0] * shape[1],), dtype=dtype, device=DEVICE)
            for _ in range(2)]  # fmt: skip


@pytest.mark.parametrize("programs", [1, 2, 20])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float32])
def test_rank_1_sends_rows_behind_those_of_rank_0(dtype, programs):
    """Of four tokens, 0 and 3 go to rank 0, which has 2 rows of its own, and 1, 2, 3 to rank 1,
    which gets none from rank 0."""
    x = torch.arange(4 * 32, device=DEVICE).reshape(4, 32).remainder(100).to(dtype)
    memory = memory_of_two((5, 32), dtype)
    send_rows(
        x, ints(0, 3, 1, 2, 3),
        starts=ints(0, 2, 5), firsts=ints(2, 0), longest=3,
        addresses=ints(*(m.data_ptr() for m in memory)), offset=64, rank=1, programs=programs,
    )  # fmt: skip
    first, second = (m[-5 * 32 :].view(5, 32).float().cpu() for m in memory)
    sent = x.float().cpu()
    assert torch.equal(first, torch.stack([torch.zeros(32)] * 2 + [sent[0], sent[3]] +
                                          [torch.zeros(32)]))  # fmt: skip
    assert torch.equal(second, torch.stack([*sent[1:], *[torch.zeros(32)] * 2]))


def test_choices_arrive_counted_from_the_receivers_first_expert():
    choices = ints(0, 4, 7, 5).view(2, 2)  # of 8 experts, 4 a rank
    memory = memory_of_two((2, 2), torch.int64)
    send_rows(
        choices, ints(0, 0, 1), starts=ints(0, 1, 3), firsts=ints(0, 0), longest=2,
        addresses=ints(*(m.data_ptr() for m in memory)), offset=64, rank=0, programs=2, shift=4,
    )  # fmt: skip
    assert memory[0][8:].tolist() == [0, 4, 0, 0]
    assert memory[1][8:].tolist() == [-4, 0, 3, 1]


def test_scales_that_lie_by_column_are_sent_by_row_and_turned_back():
    scales = torch.arange(6.0, device=DEVICE).reshape(2, 3).t()  # [3 tokens, 2 tiles]
    memory = memory_of_two((3, 2), torch.float32)
    send_rows(
        scales, None, starts=ints(0, 1, 3), firsts=ints(0, 1), longest=2,
        addresses=ints(*(m.data_ptr() for m in memory)), offset=64, rank=0, programs=1,
    )  # fmt: skip
    assert memory[0][16:].tolist() == [0, 3, 0, 0, 0, 0]
    arrived = memory[1][16:].view(3, 2)
    assert arrived.tolist() == [[0, 0], [1, 4], [2, 5]]
    turned = torch.empty((2, 3), device=DEVICE)
    by_column(arrived, turned, programs=2)
    assert turned.tolist() == [[0, 1, 2], [0, 4, 5]]


def test_each_token_gets_the_sum_of_its_rows_in_the_order_of_ranks():
    returned = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], device=DEVICE)
    token_rows = ints(0, 2, -1, 1).view(2, 2)  # token 0 from both ranks, token 1 from rank 1
    shared = torch.full((2, 2), 0.5, device=DEVICE)
    total = torch.empty((2, 2), device=DEVICE)
    sum_returned(returned, shared, token_rows, total, programs=2)
    assert total.tolist() == [[101.5, 202.5], [10.5, 20.5]]
    sum_returned(returned, None, token_rows, total, programs=1)
    assert total.tolist() == [[101.0, 202.0], [10.0, 20.0]]
