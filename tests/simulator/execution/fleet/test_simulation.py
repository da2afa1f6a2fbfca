"""Fleets whose step times come from the one-step serving model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulator.analysis.fleet_metrics import measure_fleet, observe_fleet
from simulator.analysis.run import simulate
from simulator.execution.fleet import simulation as fleet_simulation
from simulator.execution.fleet.log import CollectedLog
from simulator.execution.fleet.simulation import decode_at, prepare_fleet
from simulator.execution.progress import unwatched
from simulator.execution.serving_draws import expected_s
from simulator.execution.serving_run import ServingRun
from simulator.execution.serving_step import decode_step, iteration, prefill_load
from simulator.scenario.files import load_scenario
from simulator.workload.serving_memory import micro_batch_tokens

FLEETS = (
    "azure_code",
    "azure_conversation",
    "day6_service",
    "mooncake_conversation",
    "synthetic_1m",
)


@pytest.mark.parametrize("name", FLEETS)
def test_a_short_run_of_every_shipped_fleet_finishes_all_requests(name: str) -> None:
    scenario = load_scenario(name, ["requests.limit=150", "warm_up=0 s"])
    metrics = simulate(scenario).quick_metrics
    assert metrics["requests"]["finished"] == 150
    assert metrics["littles_law_error"] == pytest.approx(0.0, abs=1e-9)
    # None of it is NaN or infinite.
    json.dumps(metrics, allow_nan=False)


def test_step_times_between_grid_points_are_near_those_of_the_model() -> None:
    simulation = prepare_fleet(load_scenario("day6_service"))
    decode = simulation.step_times["decode"]
    prefill = simulation.step_times["prefill"]
    # The models behind them, asked directly at points off the grid.
    models = simulation.models
    direct = expected_s(decode_step(models["decode"], 88, 4989 + 1))
    assert decode.decode_step_s(88, 4989) == pytest.approx(direct, rel=0.02)
    direct = expected_s(iteration(prefill_load(models["prefill"], 12_288, 3072)))
    assert prefill.prefill_pass_s(12_288, 1536) == pytest.approx(direct, rel=0.05)


def test_the_kv_capacity_is_that_of_the_memory_model() -> None:
    simulation = prepare_fleet(load_scenario("day6_service"))
    tokens = simulation.step_times["decode"].kv_capacity_tokens
    # 85 GB less weights, buffers and reserve, at 70,272 bytes a token.
    assert 400_000 < tokens < 900_000
    assert tokens % 64 == 0


@pytest.mark.parametrize("name", ["azure_conversation", "azure_code"])
def test_the_kv_capacity_is_what_the_largest_pass_of_the_fleet_leaves(name: str) -> None:
    capacity = prepare_fleet(load_scenario(name)).step_times["colocated"].kv_capacity_tokens
    # TP8 in prefill: 85.27 GB as in decode (test_serving_memory), its up-projection in FP8.
    up = 61 * 128 * 512 * (128 + 128) // 8
    weights = 85_267_989_360 - up * (2 - (1 + 4 / 128**2))
    # A pass of 2,048 tokens on the 8 GPUs together, not of the step scenario's 16,384 on each: the
    # largest operator sums 8 rows of each token, with their numbers.
    workspace = 2048 * (8 * 7168 * 2 + 7168 * 2 + 8 * 4)
    left = 141e9 - weights - workspace - 4 * 2**30
    assert capacity == int(left / 70_272 / 64) * 64 == 729_984


def test_what_the_step_scenario_has_of_requests_does_not_change_a_fleet() -> None:
    steps = {
        "prefill": "requests.tokens_per_gpu=4096, requests.prompt_tokens=64, requests.idle_gpus=8",
        "decode": "requests.requests_per_gpu=16, requests.idle_gpus=16",
    }
    changes = [f"{pool}.{pool}_step.changes=[{text}]" for pool, text in steps.items()]
    usual, changed = (
        prepare_fleet(load_scenario("day6_service", change)).step_times for change in ([], changes)
    )
    for pool in steps:
        assert changed[pool].kv_capacity_tokens == usual[pool].kv_capacity_tokens
    assert changed["prefill"].prefill_pass_s(8192, 2048) == usual["prefill"].prefill_pass_s(
        8192, 2048
    )


def test_what_ranks_make_of_an_iteration_is_drawn_at_some_grid_points(monkeypatch) -> None:
    """Ideal ranks take size + context, expected ones 2 + size / 1000 times that, which is linear
    and so the same between the lines: at 12 of 8 and 16 and 48 of 16 and 64, (12 + 48) x 2.012."""
    asked = []

    def iteration(size: int, context: int) -> SimpleNamespace:
        return SimpleNamespace(step_s=float(size + context), size=size)

    def expected(step: SimpleNamespace) -> float:
        asked.append(step.size)
        return float(step.step_s * (2 + step.size / 1000))

    monkeypatch.setattr(fleet_simulation, "expected_s", expected)
    known: fleet_simulation.KnownTimes = {}
    times = fleet_simulation._expected(iteration, known, skewed=True)
    assert times(12, 48) == pytest.approx(60 * 2.012, rel=1e-12)
    assert sorted(set(asked)) == [8, 16]
    # What is known is not drawn again.
    asked.clear()
    assert fleet_simulation._expected(iteration, known, skewed=True)(12, 48) == times(12, 48)
    assert asked == []
    # Of ranks that are alike there is nothing to draw.
    alike = fleet_simulation._expected(iteration, {}, skewed=False)
    assert alike(12, 48) == 60.0
    assert asked == []


def test_kernels_of_all_sizes_are_priced_before_the_first_iteration(monkeypatch):
    """Of up to 64 requests, and 96 above: at the context of the first all are known, at another all
    but the attention core."""
    model, asked = prepare_fleet(load_scenario("mooncake_conversation")).models["decode"], []
    predict = model.kernels.costs.predict

    def counted(operators, **conditions):
        asked.append({operator.kind for operator in operators})
        return predict(operators, **conditions)

    monkeypatch.setattr(model.kernels.costs, "predict", counted)
    lines = fleet_simulation._BATCHES
    step_at = fleet_simulation._simulated(model, decode_at, lines, unwatched, "decode", "steps")
    for batch in (8, 1, 16, 48, 64, 96):
        step_at(batch, 512)
    assert [{"mla_decode", "gemm"} <= kinds for kinds in asked] == [True]
    step_at(16, 1024)
    assert asked[1:] == [{"mla_decode"}]
    step_at(128, 512)
    assert {"mla_decode", "gemm"} <= asked[2]


def test_what_requests_of_ranks_differ_by_is_the_fleets_own() -> None:
    model = prepare_fleet(load_scenario("day6_service")).models["decode"]
    assert model.job.skew.work_sd.high == 0.0
    assert model.job.skew.clock_sd.value > 0.0


def test_low_latency_buffers_grow_with_the_batch_of_the_fleet() -> None:
    buffers = "decode.decode_step.changes=[memory.buffer_tokens=null]"
    models = [
        prepare_fleet(load_scenario("day6_service", [buffers, f"decode.max_batch={batch}"])).models
        for batch in (128, 256)
    ]
    tokens = [micro_batch_tokens(of["decode"].job) for of in models]
    assert tokens == [64, 128]


def test_a_rebalancing_pauses_for_the_weights_that_its_placement_moves() -> None:
    changes = ["decode.rebalance={interval: 10 min}"]
    drawn = "decode.decode_step.changes=[skew.rows.zipf_exponent=0.5]"
    simulation = prepare_fleet(load_scenario("day6_service", [*changes, drawn]))
    assert simulation.job.decode is not None
    assert simulation.job.decode.rebalance is not None
    pause = simulation.job.decode.rebalance.pause
    step = load_scenario(
        "decode_ep144_day6",
        [
            "skew.rows.zipf_exponent=0.5",
            "experts.rebalance_interval=10 min",
        ],
    )
    alone = simulate(step).result
    assert isinstance(alone, ServingRun)
    assert alone.rebalance is not None
    assert pause is not None
    assert pause == alone.rebalance.seconds
    # At most two routed slots of 58 layers change, each of 44 MB, at 43.5 GB/s.
    assert 0.01 < pause < 0.13
    with pytest.raises(ValueError, match="rebalance: pause is missing"):
        prepare_fleet(
            load_scenario("day6_service", [*changes, "decode.decode_step.changes=[skew=none]"])
        )


def test_the_same_scenario_gives_the_same_rows() -> None:
    logs = []
    for _ in range(2):
        log = CollectedLog()
        prepare_fleet(load_scenario("azure_code", ["requests.limit=50"])).run(log)
        logs.append(log.all_requests().rows.tobytes())
    assert logs[0] == logs[1]


def test_a_trace_takes_the_place_of_the_synthetic_requests(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:00:0{n}.0000000,500,4" for n in range(5)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    scenario = load_scenario("azure_code", [f"requests.file={trace}", "warm_up=0 s"])
    assert simulate(scenario).quick_metrics["requests"]["arrived"] == 5


def test_a_fleet_of_fp8_caches_moves_their_bytes() -> None:
    fp8 = "changes=['memory.kv_cache=fp8_e4m3']"
    changes = [f"prefill.prefill_step.{fp8}", f"decode.decode_step.{fp8}"]
    few = ["requests.limit=5", "warm_up=0 s"]
    fleet = prepare_fleet(load_scenario("day6_service", [*few, *changes]))
    # 61 layers of 512 values, 4 scales of 4 bytes and 64 BF16 values.
    assert fleet.job.kv_bytes_per_token == 61 * (512 + 4 * 4 + 2 * 64)
    assert measure_fleet(observe_fleet(fleet))["kernels"]["decode"]["fp8_cache"]["value"] == 1.03


def test_steps_have_the_model_and_the_nodes_of_their_fleet() -> None:
    other = ["model.num_hidden_layers=31", "cluster=h100_2048"]
    fleet = prepare_fleet(load_scenario("day6_service", other))
    # 31 layers of 512 latent and 64 rotated BF16 values.
    assert fleet.job.kv_bytes_per_token == 31 * (512 + 64) * 2
    step = simulate(load_scenario("decode_ep144_day6", other)).quick_metrics
    requests = load_scenario("decode_ep144_day6").job.requests
    seconds = fleet.step_times["decode"].decode_step_s(
        requests.requests_per_gpu, requests.context_tokens
    )
    # Between points of its grid of batches and contexts.
    assert seconds == pytest.approx(step["step_time_s"], rel=0.01)


def test_steps_have_the_recipe_of_their_fleet() -> None:
    plain, int4 = (
        prepare_fleet(load_scenario("azure_conversation", ["requests.limit=5", *changes]))
        for changes in ([], ["recipe=int4"])
    )
    assert {model.recipe for model in plain.models.values()} == {"fp8"}
    assert {model.recipe for model in int4.models.values()} == {"int4"}
    # Of one token: 61 layers of 576 BF16 values. What experts of 9/16 of a byte leave free beside
    # those of 1 + 4 / 128^2, less what attention, dense layers and shared experts take in BF16.
    experts = 58 * 256 * 3 * 7168 * 2048 // 8
    attention = 61 * (7168 * 2112 + (1536 * 24576 + 16384 * 7168) // 8)
    beside = attention + (58 * 3 * 7168 * 2048 + 3 * 3 * 7168 * 18432) // 8
    fp8 = 1 + 4 / 128**2
    freed = experts * (fp8 - 9 / 16) - beside * (2 - fp8)
    held = [fleet.step_times["colocated"].kv_capacity_tokens for fleet in (plain, int4)]
    assert held[1] - held[0] == pytest.approx(freed / (61 * 576 * 2), rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["decode.decode_step.scenario=prefill_ep32_day6"], "phase of prefill_ep32_day6"),
        (["decode.decode_step.scenario=dualpipe_h800_2048"], "holds a training job"),
        (["decode.decode_step.scenario=nothing"], "unknown scenario 'nothing'"),
        (["decode.gpus_per_instance=72"], "gpus of decode_ep144_day6 is 144; allowed here: 72"),
        (["decode.ranks=72"], "gpus / attention_tp of decode_ep144_day6 is 144"),
        (
            ["speculative_decoding={draft_tokens: 1, acceptance: 0.85}"],
            "speculative_decoding.tokens_per_step of decode_ep144_day6 is 1.0; allowed here: 1.85",
        ),
        (["prefill.prefill_step=null"], "prefill: step times come from affine, or"),
        (["cluster.nodes=10"], "the pools have 240 GPUs; allowed: at most the 80"),
        (["requests.file=none.csv"], "needs format"),
        (
            ["decode.max_batch=258"],
            "max_batch 258: a micro-batch of a GPU has 129 tokens; allowed: at most the 128 of",
        ),
        (["kv_bytes_per_token=1 kB"], "fleet.kv_bytes_per_token 1000 B; allowed: the same"),
        (
            ["decode.decode_step.changes=['memory.kv_cache=fp8_e4m3']"],
            "KV caches of different bytes per token: prefill 70272 B, decode 40016 B; allowed",
        ),
    ],
)
def test_a_deployment_that_is_not_the_pools_is_an_error(changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(load_scenario("day6_service", ["requests.limit=5", *changes]))
