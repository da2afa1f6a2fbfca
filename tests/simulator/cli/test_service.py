"""The options that say what a service is."""

import pytest

from simulator.cli.service import service_of
from simulator.scenario.starting_serving import serving_machine

GIVEN = {
    "model": "deepseek_v3",
    "rate": 100.0,
    "prompt": 4096,
    "output": 1024,
    "length_cv": 0.0,
    "cached": 0.0,
    "ttft": "2 s",
    "tpot": "50 ms",
    "recipe": None,
    "kv_cache": "bfloat16",
}


def test_limits_are_read_with_their_units():
    machine = serving_machine(gpu="h200", cluster=None)
    service = service_of(machine, **GIVEN)
    assert (service.ttft_s, service.tpot_s) == (2.0, 0.05)
    assert service.requests["synthetic"]["rate"] == "100 Hz"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": None}, r"^--rate is missing; allowed: requests per second, such as --rate 10$"),
        ({"rate": float("inf")}, r"^--rate inf: allowed"),
        ({"ttft": "0 s"}, r"^--ttft 0 s: allowed: more than 0, such as '50 ms'$"),
        ({"model": "gpt"}, r"gpt"),
        ({"kv_cache": "fp4"}, r"^--kv-cache fp4: allowed: bfloat16 or fp8_e4m3$"),
        (
            {"trace_format": "azure"},
            r"^--format azure: allowed: with --requests",
        ),
    ],
)
def test_what_is_no_service_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        service_of(serving_machine(gpu="h200", cluster=None), **(GIVEN | changed))
