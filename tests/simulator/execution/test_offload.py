"""KTransformers' machine: two rows fitted, the two-socket rows predicted."""

from dataclasses import replace

import pytest

from hardware_profiles.offload_servers import load_server
from reference_model.config import load_model_config
from simulator.execution.offload import fit_offload, offload_step
from simulator.scenario.serving import OffloadJob
from simulator.workload.memory import Infeasible

SERVER = load_server("ktransformers_4090d")
CONFIG = load_model_config("deepseek_v3")


def step(sockets=1, experts=8, server=SERVER):
    job = OffloadJob(server=server.name, sockets=sockets, experts_per_token=experts)
    return offload_step(job, server=server, config=CONFIG)


@pytest.mark.parametrize("row", SERVER.fitted_rows, ids=lambda row: row.source)
def test_the_fitted_rows_come_back(row):
    assert 1 / step(1, row.experts_per_token).token_s == pytest.approx(row.tokens_per_second)


@pytest.mark.parametrize("row", SERVER.held_out_rows, ids=lambda row: row.source)
def test_the_two_socket_rows_are_predicted_within_ten_percent(row):
    assert row.sockets == 2
    predicted = 1 / step(2, row.experts_per_token).token_s
    assert predicted == pytest.approx(row.tokens_per_second, rel=0.10)


def test_the_fit_stays_below_what_the_memories_can_do():
    result = step()
    assert 0 < result.expert_rate_share < 1
    assert result.gpu_bound_s < fit_offload(SERVER)[0]


def test_experts_that_do_not_fit_say_by_how_much():
    small = SERVER.model_copy(update={"memory": 512e9})
    step(1, server=small)
    with pytest.raises(Infeasible, match="2 copies of the routed experts need"):
        step(2, server=small)
    tiny = SERVER.gpu.model_copy(update={"memory_capacity": 4e9})
    with pytest.raises(Infeasible, match="weights outside the routed experts"):
        step(1, server=SERVER.model_copy(update={"gpu": tiny}))


def test_a_model_that_the_server_was_not_measured_with_is_refused():
    # 58 MoE layers of 256 experts of 3 x 7168 x 2048 parameters; here 57 layers of 248.
    smaller = replace(CONFIG, n_routed_experts=248, num_hidden_layers=60)
    job = OffloadJob(server=SERVER.name, sockets=1, experts_per_token=8)
    with pytest.raises(ValueError, match=r"a model of 6\.541e\+11 .* 6\.226e\+11; allowed:"):
        offload_step(job, server=SERVER, config=smaller)


def test_more_sockets_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="sockets 3: ktransformers_4090d has 2"):
        step(3)
