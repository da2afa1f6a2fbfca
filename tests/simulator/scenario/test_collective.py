"""What a collective scenario may ask for."""

import pytest

from simulator.execution.collective import run_collective
from simulator.scenario.files import load_scenario


def run(name, *changes):
    scenario = load_scenario(name, changes)
    return run_collective(scenario)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("all_to_all_64", "collective.operation.gpus=4096", "the cluster has 2048"),
        ("all_to_all_64", "collective.operation.group=48", "groups of 48 do not divide 64 GPUs"),
        ("all_to_all_64", "collective.operation.algorithm=ring", "allowed: direct, rail"),
        ("all_to_all_64", "collective.operation.bytes_per_pair=null", "needs one of"),
        ("all_to_all_64", "collective.transport=pigeons", "unknown transport 'pigeons'"),
        ("all_to_all_64", "cluster.node.nic.bandwidth=0 GB/s", "greater than 0"),
        ("all_to_all_64", "cluster.fabric.switch_ports=63", "odd number of ports"),
        ("all_to_all_64", "cluster.nodes=4096", "at most 2048"),
        ("all_to_all_64", "cluster.failures=[plane:7]", "known: plane 0 to 0"),
        ("all_to_all_64", "cluster.failures=[node:5]", "no live path from"),
        ("all_to_all_64", "cluster.fabric.topology=torus", "unknown topology 'torus'"),
        (
            "deepep_normal",
            "operation.gpus=64",
            "the file varies it; allowed: --set vary.operation.gpus",
        ),
        (
            "deepep_normal",
            "vary.operation.gpu=[8]",
            r"operation.gpu: unknown field; did you mean gpus\?$",
        ),
        ("deepep_normal", "vary.operatio.gpus=[8]", "--set operatio.gpus: unknown field"),
        ("deepep_normal", "vary.operation.gpus=[12]", "whole nodes of 8 GPUs, got 12"),
        ("deepep_normal", "vary.operation.gpus=[48]", "256 experts cannot be divided"),
        ("deepep_normal", "collective.operation.sms=null", "needs sms"),
        ("deepep_low_latency", "cluster.fabric.cross_plane=maybe", "cross_plane"),
    ],
)
def test_bad_input_is_one_clear_line(name, change, message):
    with pytest.raises(ValueError, match=message) as error:
        run(name, change)
    assert "\n" not in str(error.value)
