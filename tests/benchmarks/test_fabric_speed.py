"""How long traffic on a fabric takes as a whole process, start-up included, on one core.

Limits that the project keeps to, on one core: 1 s and 500 MB for 32 all-to-alls of 64 GPUs at once,
10 s for the same with random sizes, 3 s for one all-to-all over 2,048 GPUs, 5 s to build and route
16,384 GPUs on eight planes. Run with: python -m pytest tests/benchmarks --benchmark-only
"""

import os
import resource
import subprocess
import sys

import pytest

RUN = ["-m", "simulator.cli", "run"]
BUILD = """
import numpy as np
from hardware_profiles.schema import load_cluster, load_transport
from simulator.hardware.network.clusters import cluster_fabric
from simulator.hardware.network.routing import route
from simulator.hardware.network.topology import to_graph
fabric = cluster_fabric(load_cluster("mpft_16384"), load_transport("ideal"))
to_graph(fabric)
gpu = np.arange(fabric.gpus)
for plane in range(8):
    route(fabric, gpu, (gpu // 8 * 8 + 8 * (1 + 37 * plane) + plane) % fabric.gpus)
"""
ARGUMENTS = {
    "32 x EP64": [*RUN, "all_to_all_32x_ep64", "--json"],
    "32 x EP64, hot experts": [
        *RUN,
        "all_to_all_32x_ep64",
        "--set",
        "collective.operation.sizes=hot_experts",
        "--json",
    ],
    "2,048 GPUs": [*RUN, "all_to_all_2048", "--json"],
    "16,384 GPUs x 8 planes, built and routed": ["-c", BUILD],
}


def on_one_core():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_time_of(name, benchmark, tmp_path):
    benchmark.pedantic(
        subprocess.run,
        args=([sys.executable, *ARGUMENTS[name]],),
        kwargs={
            "cwd": tmp_path,
            "check": True,
            "capture_output": True,
            "preexec_fn": on_one_core,
        },
        rounds=3,
        warmup_rounds=1,
    )
    # The largest child so far: an upper bound for this one, in KiB on Linux.
    benchmark.extra_info["peak_memory_kib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
