"""A service of DeepSeek-V3 on H200 whose prices and fleets tests make up by hand."""

from reference_model.config import load_model_config
from simulator.analysis.plan.serving_bounds import Demand, Limits
from simulator.scenario.starting_serving import service_by_flags, serving_machine

LIMITS = Limits(ttft_s=2.0, tpot_s=0.05)
DEMAND = Demand(
    rate=10.0, prompt_tokens=1000.0, computed_tokens=1000.0, attended_tokens=500.5,
    long_prompt=1000.0, long_cached=0.0, output_tokens=101.0, steps=100.0, context=1050.5,
    span_s=100.0,
)  # fmt: skip


def service():
    """10 requests per second of 1,000 tokens in and 101 out."""
    return service_by_flags(
        model="deepseek_v3",
        config=load_model_config("deepseek_v3"),
        machine=serving_machine(gpu="h200", cluster=None),
        rate=10.0,
        prompt=1000,
        output=101,
        ttft_s=2.0,
        tpot_s=0.05,
    )
