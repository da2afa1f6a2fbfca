"""Fleet jobs refuse what does not fit together, in one line that says what is allowed."""

from typing import Any

import pytest

from simulator.scenario.files import load_scenario
from simulator.scenario.fleet import RequestSource


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["decode=null"], "needs the pools prefill and decode, or colocated; given: prefill"),
        (["kv_transfer=null"], "kv_transfer is needed between the pools prefill and decode"),
        (["prefill.tokens_per_pass=null"], "prefill: tokens_per_pass is needed"),
        (["prefix_cache=null"], "cached_fraction needs a prefix_cache"),
        (["warm_up=5"], "warm_up: 5 has no unit"),
        (["sample_interval=0 s"], "sample_interval: must be greater than 0"),
        (["prefill.instances=-1"], "prefill.instances: -1 is not allowed"),
        (["prefill.instnces=1"], r"unknown field; did you mean fleet\.prefill\.instances\?$"),
        (["requests.synthetic.rate=3"], "rate: 3 has no unit"),
        (["requests.rate_scale=0"], "rate_scale: 0 is not allowed"),
        (["requests.window={start: 2 s, end: 1 s}"], "end must be later than start"),
        (["failures=[{pool: decode, instance: 7, at: 1 s}]"], "no instance 7 of decode"),
        (["decode.hourly_instances=[1, 2]"], "hourly_instances"),
        (["decode.hourly_instances=[" + "0, " * 23 + "0]"], "hourly_instances are all 0"),
        (
            ["prefix_cache.tiers=[{name: hbm, scope: instance, capacity_tokens: 9, "
             "load_bandwidth: 1 GB/s}]"],
            "hbm is read in place",
        ),
    ],
)  # fmt: skip
def test_a_fleet_that_does_not_fit_together_is_an_error(changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_scenario("day6_service", changes)


def test_blocks_of_the_cache_are_those_of_the_requests_hashes() -> None:
    with pytest.raises(ValueError, match="block_tokens is 64; allowed with these requests: 512"):
        load_scenario("mooncake_conversation", ["prefix_cache.block_tokens=64"])


def test_a_horizon_within_the_warm_up_is_an_error() -> None:
    with pytest.raises(ValueError, match="horizon is 60 s; allowed: later than warm_up"):
        load_scenario("azure_code", ["horizon=1 min", "warm_up=2 min"])


def test_the_last_chance_of_a_further_turn_must_let_sessions_end() -> None:
    with pytest.raises(ValueError, match="the last continue_probability is 1"):
        load_scenario(
            "mooncake_conversation", ["requests.synthetic.sessions.continue_probability=[0.5, 1]"]
        )


@pytest.mark.parametrize(
    "change", [{"rate_scale": 2.0}, {"window": {"start": "0 s", "end": "1 s"}}]
)
def test_a_closed_loop_takes_no_times_of_its_own(change: dict[str, Any]) -> None:
    tokens = {"kind": "constant", "mean": 10}
    loop = {"arrivals": "closed_loop", "users": 2, "think_time": "1 s", "count": 5}
    synthetic = {**loop, "prompt_tokens": tokens, "output_tokens": tokens}
    with pytest.raises(ValueError, match="take neither window nor rate_scale"):
        RequestSource.model_validate({"synthetic": synthetic, **change})


def test_a_colocated_batch_leaves_room_for_prompts() -> None:
    with pytest.raises(ValueError, match="tokens_per_pass is 200; it must be greater"):
        load_scenario("azure_code", ["colocated.tokens_per_pass=200"])


@pytest.mark.parametrize(
    ("speculation", "tokens"),
    [(None, 1.0), ({"draft_tokens": 1, "acceptance": 0.85}, 1.85),
     ({"draft_tokens": 2, "acceptance": 0.5}, 1.75)],
)  # fmt: skip
def test_tokens_per_step_are_one_and_the_expected_accepted_drafts(
    speculation: dict[str, Any] | None, tokens: float
) -> None:
    job = load_scenario("day6_service").job
    assert job is not None
    changed = job.model_copy(
        update={"speculative_decoding": speculation and _speculation(speculation)}
    )
    assert changed.tokens_per_step == pytest.approx(tokens)


def _speculation(fields: dict[str, Any]) -> Any:
    from simulator.scenario.inputs import SpeculativeDecoding

    return SpeculativeDecoding.model_validate(fields)
