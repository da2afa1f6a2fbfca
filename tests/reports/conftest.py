"""Small runs to report: 4 ranks of DualPipe with a pair of two layers on two streams; a sweep."""

from itertools import pairwise

import pandas as pd
import pytest

from reports.sweep import Sweep
from reports.tables import Input, RunTables
from simulator.analysis.sweep import Axis, Limit, Objective, Point
from simulator.execution.pipeline import run_ideal
from simulator.scenario.files import load_scenario
from simulator.workload.schedules.bidirectional import dualpipe
from simulator.workload.schedules.bubbles import IdealTimes

PAIR = "F&B 2 moe & 2 moe"
TIMES = IdealTimes(0.06, 0.08, 0.03, 0.129)
OPTIMIZER_S = 0.3


def _pair_operators() -> pd.DataFrame:
    """Two slots of six compute and four communication blocks, two operators in a compute block."""
    rows = []

    def add(stream: str, segment: str, phase: str, slot: int, spans: list[float]) -> None:
        for number, (start, end) in enumerate(pairwise(spans)):
            rows.append(
                {
                    "chunk": PAIR,
                    "stream": stream,
                    "name": f"{segment}.{'gemm' if number else 'norm'}",
                    "kind": "gemm" if number else "rmsnorm",
                    "phase": phase,
                    "segment": segment,
                    "layer": f"moe {phase[0].upper()}{slot}",
                    "dtype": "fp8_e4m3" if number else "bfloat16",
                    "sizes": "k=7168, m=4096, n=1536",
                    "start_s": start,
                    "end_s": end,
                    "low_s": 0.9 * (end - start),
                    "high_s": 1.1 * (end - start),
                    "provenance": "measured" if number else "modelled",
                    "flops": 10**12 if number else 0,
                    "bytes": 10**8,
                }
            )

    for slot in range(2):
        at = 0.0645 * slot
        compute = [
            ("attention", "forward", 0.0, 0.01),
            ("mlp", "input_grad", 0.01, 0.02),
            ("mlp", "weight_grad", 0.02, 0.03),
            ("mlp", "forward", 0.03, 0.04),
            ("attention", "input_grad", 0.04, 0.06),
            ("attention", "weight_grad", 0.06, 0.0645),
        ]
        for segment, phase, start, end in compute:
            add("compute", segment, phase, slot, [at + start, at + start + 0.001, at + end])
        add("communication", "combine", "input_grad", slot, [at, at + 0.009])
        add("communication", "dispatch", "forward", slot, [at + 0.01, at + 0.02])
        add("communication", "dispatch", "input_grad", slot, [at + 0.02, at + 0.035])
        add("communication", "combine", "forward", slot, [at + 0.04, at + 0.055])
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def tables() -> RunTables:
    schedule = dualpipe(4, 8)
    run = run_ideal(schedule, TIMES)
    actions = pd.DataFrame(run.columns()).assign(chunk=PAIR)
    optimizer = pd.DataFrame(
        {
            "rank": range(4),
            "index": 99,
            "label": "update parameters",
            "work": "optimizer",
            "chunk": "",
            "start_s": run.makespan_s,
            "end_s": run.makespan_s + OPTIMIZER_S,
        }
    )
    actions = pd.concat([actions, optimizer], ignore_index=True)
    ranks = []
    for rank in range(4):
        own = actions[actions["rank"] == rank]
        spent = (own["end_s"] - own["start_s"]).groupby(own["work"]).sum()
        ranks.append(
            {
                "forward_s": spent["F"],
                "backward_s": spent["B"] + spent["I"],
                "weight_s": spent["W"],
                "overlapped_s": spent["F&B"],
                "bubble_s": run.bubble_s[rank],
                "optimizer_s": OPTIMIZER_S,
                "exposed_communication_s": 0.1,
                "hidden_communication_s": 0.5,
            }
        )
    step = run.makespan_s + OPTIMIZER_S
    memory = {
        "weights": 2.0**33,
        "gradients": 2.0**34,
        "optimizer": 2.0**30,
        "activations": 2.0**34,
        "workspace": 2.0**30,
        "reserved": 2.0**32,
    }
    metrics = {
        "step_time_s": step,
        "tokens_per_day": 1e9,
        "tokens_per_second_per_gpu": 1500.0,
        "tflops_per_gpu_causal": 400.0,
        "tflops_per_gpu_non_causal": 450.0,
        "mfu_causal": 0.404,
        "mfu_non_causal": 0.455,
        "gpu_hours_per_trillion_tokens": 185_000.0,
        "cost_usd_per_trillion_tokens": 370_000.0,
        "bubble_s": float(max(run.bubble_s)),
        "pair_time_s": 0.129,
        "pair_time_kind": "reproduced",
        "peak_memory_bytes": sum(memory.values()),
        "without_all_to_all_slowdown": {"pair_time_s": 0.12, "step_time_s": 0.95 * step},
        "kernel_time_share": {
            "pair": {"measured": 0.8, "interpolated": 0.0, "extrapolated": 0.0, "modelled": 0.2},
            "step": {"measured": 0.6, "interpolated": 0.1, "extrapolated": 0.1, "modelled": 0.2},
        },
        "attribution": [
            {"name": "arithmetic", "meaning": "at peak", "seconds": 0.7 * step},
            {"name": "bubble", "meaning": "waiting", "seconds": 0.3 * step},
            {"name": "remainder", "meaning": "the rest", "seconds": 0.0},
        ],
        "ranks": ranks,
        "memory": [memory | {"total": sum(memory.values())}] * 4,
        "published": [
            {
                "name": "pair",
                "published": 0.129,
                "simulated": 0.129,
                "error": 0.0,
                "source": "a profile",
            },
            {
                "name": "step",
                "published": step / 1.1,
                "simulated": step,
                "error": 0.1,
                "source": "a paper",
            },
            {"name": "other", "published": 1.0, "simulated": None, "error": None, "source": ""},
        ],
    }
    return RunTables(
        name="small",
        description="A small step </script><script>alert(1)</script>",
        facts={"schedule": "dualpipe, 8 micro-batches", "step": "32,768 tokens"},
        actions=actions.sort_values(["rank", "index"], ignore_index=True),
        operators=_pair_operators(),
        pair=PAIR,
        stages=tuple(", ".join(str(s) for s in schedule.stages_of(rank)) for rank in range(4)),
        metrics=metrics,
        published=("pair_time_s", "step_time_s", "no_such_metric"),
        changed="training.pp=4.",
        memory_capacity=2.0**36,
        inputs=(Input("training.stages", "default", "", "assumed", "assumed: evenly"),),
        scenario="name: small\n",
    )


AXES = (Axis.parse("seed=1,2,3"), Axis.parse("collective.merge_share=0,0.01"))


@pytest.fixture
def swept() -> Sweep:
    """Six points: a time that grows with the seed, a rate that falls, one point that failed."""
    rows = []
    for seed in (1, 2, 3):
        for merge in (0, 0.01):
            settings = {"seed": seed, "collective.merge_share": merge}
            failed = seed == 2 and merge == 0
            metrics = {"completion_s": seed * 1e-3, "rate": seed + merge, "wall_clock_s": 9.0}
            reason = "does not fit </script>" if failed else None
            rows.append(Point(settings, f"{seed}-{merge}", {} if failed else metrics, reason))
    return Sweep(
        scenario=load_scenario("all_to_all_64"),
        axes=AXES,
        ran=tuple(rows),
        metrics=("completion_s", "rate"),
        limits=(Limit.parse("completion_s<=2.5 ms"),),
        objectives=(Objective.parse("min:completion_s"), Objective.parse("max:rate")),
    )
