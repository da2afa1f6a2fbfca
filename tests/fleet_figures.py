"""Rows of made-up fleets, for tests of what is measured of them."""

from typing import Any

from simulator.scenario.fleet import FleetJob

STEP_TIMES = {
    "decode_fixed": "10 ms",
    "decode_per_request": "100 us",
    "decode_per_context_token": "1 us",
    "prefill_fixed": "5 ms",
    "prefill_per_token": "20 us",
    "prefill_per_attended_token": "10 ns",
    "kv_capacity_tokens": 20_000,
}


POOL = {
    "instances": 1,
    "gpus_per_instance": 8,
    "ranks": 2,
    "affine": STEP_TIMES,
    "max_batch": 64,
    "tokens_per_pass": 512,
}


def make_job(rate: str, count: int = 600, *, answer: float = 40, **changes: Any) -> FleetJob:
    return FleetJob.model_validate(
        {
            "requests": {
                "synthetic": {
                    "arrivals": "poisson",
                    "rate": rate,
                    "count": count,
                    "prompt_tokens": {"kind": "exponential", "mean": 300},
                    "output_tokens": {"kind": "exponential", "mean": answer},
                }
            },
            "prefill": POOL,
            "decode": POOL,
            "kv_bytes_per_token": "70272 B",
            "kv_transfer": {"latency": "10 us"},
            "service_level": {"ttft": "200 ms", "tpot": "15 ms"},
            "warm_up": "5 s",
            "sample_interval": "250 ms",
            **changes,
        }
    )
