"""Dispatch as flows: on an idle fabric, between ranks alike, it takes what it takes alone."""

import numpy as np
import pytest
import simpy

from reference_model.trace import Operator
from simulator.analysis.run import simulate
from simulator.execution.machine.exchange import expected_copies, normal_transfer
from simulator.execution.machine.surroundings import shared_fabric
from simulator.hardware.network.flows import Network
from simulator.hardware.network.groups import Reach
from simulator.scenario.events import CHANNELS
from simulator.scenario.files import load_scenario

REACH = Reach(parts=(4, 4), reached=(0.75, 0.75), gpus=4.0)
"""Of a token: 1.5 of two nodes of 4 GPUs, and half of the 8 GPUs."""


def test_ranks_with_more_rows_receive_more_copies():
    """100 tokens reach 4 of 8 ranks: 50 copies for each, half more for the first; its node gets
    (1.5 + 3 x 1) / 4 of 75."""
    copies = expected_copies(100, REACH, np.array([1.5, *[1.0] * 7]))
    assert copies.to_rank[3].tolist() == [75.0, *[50.0] * 7]
    assert copies.to_node[3].tolist() == [84.375, 75.0]


def test_a_token_reaches_a_node_at_most_once():
    copies = expected_copies(100, REACH, np.array([4.0, 4.0, 4.0, 4.0, *[0.0] * 4]))
    assert copies.to_node[0].tolist() == [100.0, 0.0]


@pytest.fixture(scope="module")
def job():
    return simulate(load_scenario("dualpipe_h800_2048")).result


@pytest.mark.parametrize("kind", ["dispatch", "combine"])
def test_flows_take_the_time_alone(job, kind):
    operator = next(one for one in job.step.pair.log.graph.task_operators() if one.kind == kind)
    assert isinstance(operator, Operator)
    scenario = job.scenario
    fabric = shared_fabric(scenario.cluster, scenario.calibration, CHANNELS, group=64)
    transfer = normal_transfer(
        job.costs.transfers_, operator, sms=20, shares=np.ones(64), fabric=fabric, first_gpu=0
    )
    env = simpy.Environment()
    network = Network(env, fabric)
    batch = env.run(until=network.transfer(transfer.flows))
    farthest = 2 * fabric.inputs.cross_leaf_latency
    assert transfer.alone_s <= batch.seconds <= transfer.alone_s + farthest
