"""Where tokens of a group go, counted by hand."""

import pytest

from simulator.hardware.network.groups import Reach


def test_with_equal_nodes_a_nic_sends_one_copy_to_each_other_node_reached():
    # Two nodes of 8 GPUs, each reached by 0.8 of the tokens: 1.6 nodes, half of them elsewhere.
    reach = Reach(parts=(8, 8), reached=(0.8, 0.8), gpus=5.0)
    assert reach.nodes == pytest.approx(1.6, rel=1e-15)
    assert reach.over_nics == pytest.approx(0.8, rel=1e-15)


def test_the_nics_of_a_small_node_receive_what_all_other_gpus_send():
    # Half of the tokens of the 8 GPUs elsewhere reach the node of 4: 8 / 4 x 0.5 copies per NIC.
    reach = Reach(parts=(8, 4), reached=(0.9, 0.5), gpus=5.0)
    assert reach.over_nics == pytest.approx(1.0, rel=1e-15)
