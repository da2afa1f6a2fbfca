"""Small fleets for tests: pools with affine step times, requests, a run, and what holds for it."""

from typing import Any

import numpy as np
import pytest

from hardware_profiles.schema import ClusterProfile
from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.log import CollectedLog, Outcome, RowBlock
from simulator.execution.fleet.step_times import AffineStepTimes
from simulator.scenario.fleet import AffineCoefficients, FleetJob

STEP_TIMES = {
    "decode_fixed": "10 ms",
    "decode_per_request": "100 us",
    "decode_per_context_token": "1 us",
    "prefill_fixed": "5 ms",
    "prefill_per_token": "20 us",
    "prefill_per_attended_token": "10 ns",
    "kv_capacity_tokens": 4000,
}


def pool(instances: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "instances": instances,
        "gpus_per_instance": 8,
        "ranks": 1,
        "affine": STEP_TIMES,
        "max_batch": 64,
        "tokens_per_pass": 512,
        **changes,
    }


def fixed_requests(count: int, prompt: int, output: int, rate: str = "5 Hz") -> dict[str, Any]:
    return {
        "synthetic": {
            "arrivals": "poisson",
            "rate": rate,
            "count": count,
            "prompt_tokens": {"kind": "constant", "mean": prompt},
            "output_tokens": {"kind": "constant", "mean": output},
        }
    }


def make_job(requests: dict[str, Any], **changes: Any) -> FleetJob:
    return FleetJob.model_validate(
        {
            "requests": requests,
            "kv_bytes_per_token": "70272 B",
            "kv_transfer": {"latency": "10 us"},
            "service_level": {"ttft": "2 s", "tpot": "50 ms"},
            "warm_up": "0 s",
            "sample_interval": "10 s",
            **changes,
        }
    )


def run(job: FleetJob, cluster: ClusterProfile, seed: int = 0) -> tuple[FleetRun, CollectedLog]:
    log = CollectedLog()
    step_times = {}
    for name, spec in job.pools.items():
        assert isinstance(spec.affine, AffineCoefficients)
        step_times[name] = AffineStepTimes(spec.affine)
    return run_fleet(job, step_times, cluster, seed=seed, logs=[log]), log


def check_conservation(result: FleetRun, rows: RowBlock) -> None:
    """Every request ends exactly once, with all its tokens; KV cache allocated = freed."""
    assert sorted(rows["request"]) == list(range(result.arrived))
    assert result.arrived == result.finished + sum(result.rejected.values()) + result.unfinished
    finished = rows["outcome"] == Outcome.FINISHED
    assert int(finished.sum()) == result.finished
    assert np.array_equal(rows["generated_tokens"][finished], rows["output_tokens"][finished])
    assert result.tokens_generated == result.tokens_asked
    if not result.unfinished:
        for instance in result.instances:
            assert instance.kv_allocated_tokens == pytest.approx(
                instance.kv_freed_tokens, abs=1e-6 * max(instance.kv_allocated_tokens, 1)
            )
    ordered = rows.rows[finished]
    times = RowBlock(("request", "arrival_s", "prefill_start_s", "first_token_s"), ordered[:, :4])
    assert np.all(times["arrival_s"] <= times["prefill_start_s"])
    assert np.all(times["prefill_start_s"] < times["first_token_s"])
    assert np.all(times["first_token_s"] <= ordered[:, 5])
