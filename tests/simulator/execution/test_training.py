"""A training step: bounds, invariants and what each input moves."""

import numpy as np
import pytest

from simulator.analysis.run import simulate
from simulator.analysis.training_metrics import rank_times, training_metrics
from simulator.execution.timeline import waiting
from simulator.scenario.files import SCENARIOS, load_scenario
from simulator.workload.schedules.known import SCHEDULES
from simulator.workload.task_graph import Stream

MAIN = "dualpipe_h800_2048"
ONE_GPU = str(SCENARIOS.parent / "whole" / "train.yaml")


def run(*changes):
    """Of ideal ranks; those that differ are test_training_draws'."""
    return simulate(load_scenario(MAIN, ["skew=none", *changes])).result


@pytest.fixture(scope="module")
def published():
    return run()


@pytest.fixture(scope="module")
def metrics(published):
    return training_metrics(published)


MORE_MEMORY = "cluster.node.gpu.hbm_capacity=400 GiB"
STAGGERED = "optimizer.post_validation=true"
FITS = {
    **dict.fromkeys(SCHEDULES, ()),
    "gpipe": (MORE_MEMORY,),
    "zb_h2": (MORE_MEMORY, STAGGERED),
    "zbv": ("training.stages=default", STAGGERED),
}
"""{schedule: what the main job needs to fit it, and to gain what it is made for}"""


@pytest.fixture(scope="module", params=FITS)
def scheduled(request):
    return run(f"training.schedule={request.param}", *FITS[request.param])


def test_the_published_pair_is_reproduced_within_five_percent(metrics):
    assert metrics["pair_time_kind"] == "reproduced"
    assert metrics["pair_time_s"] == pytest.approx(0.1290, rel=0.05)


def test_a_pair_of_inputs_other_than_the_published_ones_is_called_predicted():
    metrics = training_metrics(run("training.schedule=1f1b"), with_intervals=False)
    assert metrics["pair_time_kind"] == "predicted"


def test_a_pair_beyond_the_published_rows_is_called_predicted():
    figure = "{name: of half the tokens, metric: pair_time_s, value: 70 ms, source: made up}"
    half = run("training.sequence_length=2048", f"published=[{figure}]")
    assert training_metrics(half)["pair_time_kind"] == "predicted"


def test_the_budget_of_every_rank_sums_to_the_step(scheduled):
    step = scheduled.step.step_time_s
    for times in rank_times(scheduled.step):
        parts = (
            times.forward_s + times.backward_s + times.weight_s + times.overlapped_s
            + times.bubble_s + times.optimizer_s
        )  # fmt: skip
        assert parts == pytest.approx(step, rel=1e-12)
        assert times.bubble_s > -1e-9
        communication = times.exposed_communication_s + times.hidden_communication_s
        busy = times.forward_s + times.backward_s + times.weight_s + times.overlapped_s
        assert 0 <= communication <= busy


def test_every_chunk_lies_between_its_longest_stream_and_the_sum_of_both(scheduled):
    gap = scheduled.scenario.calibration.gap.value
    for chunk in scheduled.step.chunks.values():
        kernels = dict.fromkeys(Stream, 0.0)
        for task, seconds in zip(chunk.log.graph.tasks, chunk.cost.seconds, strict=True):
            kernels[task.stream] += float(seconds)
        assert max(kernels.values()) <= chunk.log.span_s
        assert chunk.log.span_s <= sum(kernels.values()) + gap * len(chunk.log.graph.tasks)


def test_every_action_of_the_schedule_is_in_the_log(scheduled):
    pipeline = scheduled.step.pipeline
    assert len(pipeline.start_s) == sum(map(len, scheduled.schedule.actions))
    assert pipeline.makespan_s >= pipeline.busy_s.max()


def test_the_same_scenario_gives_the_same_log(published):
    again = run()
    np.testing.assert_array_equal(again.step.pipeline.end_s, published.step.pipeline.end_s)


@pytest.mark.parametrize(
    "change",
    [
        "cluster.node.nic.bandwidth=800 Gbit/s",
        "cluster.node.gpu.nvlink_bandwidth=400 GB/s",
        "cluster.node.gpu.pcie_bandwidth=128 GB/s",
        "cluster.node.gpu.hbm_bandwidth=6.7 TB/s",
        "cluster.node.gpu.sm_clock=3660 MHz",
        "cluster.node.gpu.sms=133",
    ],
)
def test_a_faster_part_never_slows_the_step(change, published):
    faster = run(change)
    assert faster.step.step_time_s <= published.step.step_time_s
    assert faster.step.pair.log.span_s <= published.step.pair.log.span_s


def test_at_half_the_clock_only_bytes_and_transfers_keep_their_time(published):
    slow = run("cluster.node.gpu.sm_clock=915 MHz")
    # A layer's 31.5 ms beside its all-to-all: 22.6 of products and 3.7 of what is no traffic at the
    # fastest kernel's rate double, 5.3 of traffic do not: 1.83. Some products are traffic as well.
    ratio = slow.step.pair.log.span_s / published.step.pair.log.span_s
    assert ratio == pytest.approx(1.817, abs=5e-3)
    slower = slow.step.step_time_s / published.step.step_time_s
    # Communication SMs copy at half their rate too, which shows where copies near the NICs' time.
    assert slower == pytest.approx(1.782, abs=5e-3)
    halves = training_metrics(slow, with_intervals=False)
    whole = training_metrics(published, with_intervals=False)
    # Utilisation counts against what the GPUs reach at their clock.
    assert halves["mfu_causal"] / whole["mfu_causal"] == pytest.approx(2 / slower)


@pytest.mark.parametrize(
    "path",
    [
        "overlap.gemm",
        "overlap.attention",
        "overlap.memory_bound",
        "all_to_all.beside_compute.dispatch",
        "all_to_all.beside_compute.combine",
    ],
)
def test_a_larger_slowdown_beside_an_all_to_all_slows_the_step(path, published):
    path = f"calibration.{path}"
    slower = run(f"{path}.value=1.9", f"{path}.high=2.0")
    assert slower.step.step_time_s > published.step.step_time_s
    assert slower.step.pair.log.span_s >= published.step.pair.log.span_s


def test_half_the_tokens_take_about_half_the_pair(published):
    ratio = (
        run("training.sequence_length=2048").step.pair.log.span_s / published.step.pair.log.span_s
    )
    # Attention's square halves faster, launches and gaps do not halve at all.
    assert 0.45 < ratio < 0.55


def test_more_communication_sms_slow_the_compute_bound_pair_by_gemm_waves(published):
    ratio = (
        run("training.communication_sms=24").step.pair.log.span_s / published.step.pair.log.span_s
    )
    assert 1.0 < ratio < 112 / 108 * 1.02


def test_slow_nics_expose_communication(published):
    slow = run("cluster.node.nic.bandwidth=200 Gbit/s").step.pair.log
    log = published.step.pair.log
    assert waiting(slow).exposed_communication_s > 10 * waiting(log).exposed_communication_s
    assert slow.span_s > 1.2 * log.span_s


def test_without_the_all_to_all_slow_down_nothing_is_slower(published):
    assert published.without_slowdown.step_time_s <= published.step.step_time_s
    assert published.without_slowdown.pair.log.span_s <= published.step.pair.log.span_s


def test_the_optimizer_of_dualpipe_moves_more_than_that_of_one_copy(published):
    single = run("training.schedule=1f1b")
    assert published.step.optimizer[1].reduce_s > single.step.optimizer[1].reduce_s


def test_memory_counts_two_copies_for_dualpipe_and_one_for_its_v(published):
    two, one = published.memory, run("training.schedule=dualpipev").memory
    assert two[5].gradients == 2 * one[5].gradients


def test_pairs_of_1f1b_hold_twice_the_activations():
    """16 ranks: 31 + 1 micro-batches in the place of 16 on rank 0."""
    stages = f"training.stages={load_scenario(MAIN).resolved['training']['stages']}"
    roomy = "cluster.node.gpu.hbm_capacity=141 GB"
    alone = run("training.schedule=1f1b", stages, roomy)
    pairs = run("training.schedule=1f1b_overlapped", stages, roomy)
    assert pairs.memory[0].activations == pytest.approx(2 * alone.memory[0].activations)
    with pytest.raises(ValueError, match=r"pipeline rank 1 needs .* more than its 79.11 GiB"):
        run("training.schedule=1f1b_overlapped", stages)


def test_gradients_of_half_the_size_halve_their_memory_and_their_reduction(published):
    half = run("training.optimizer={gradients: bfloat16}")
    assert half.memory[5].gradients == published.memory[5].gradients / 2
    assert half.memory[5].optimizer == published.memory[5].optimizer
    # Bytes over NICs, and a ring's latency that does not halve.
    latency = 2 * half.step.optimizer[5].reduce_s - published.step.optimizer[5].reduce_s
    assert 0 <= latency < 1e-3


def test_a_bfloat16_step_keeps_weights_of_twice_the_size_and_is_slower(published):
    wide = run("training.recipe=bf16", "cluster.node.gpu.hbm_capacity=141 GiB")
    assert wide.job.recipe == "bfloat16"
    matrices = 8 * 407_306_240  # of eight MoE layers on rank 5, see test_memory
    scales = matrices * 4 / 128**2
    assert wide.memory[5].weights - published.memory[5].weights == matrices - scales
    assert wide.memory[5].gradients == published.memory[5].gradients
    types = {operator.dtype for operator in wide.step.pair.log.graph.operators}
    assert "fp8_e4m3" not in types
    # Twice the bytes at half the rate, though without casts.
    assert wide.step.pair.log.span_s > published.step.pair.log.span_s


def test_weight_gradients_are_computed_immediately_only_where_memory_needs_it(published):
    assert published.immediate == ()
    tight = run("training.schedule=zb_h1")
    assert tight.immediate
    assert max(rank.total for rank in tight.memory) <= tight.scenario.cluster.node.gpu.hbm_capacity


def test_table_4_rows_and_the_flop_rule_agree_with_the_step(metrics, published):
    # 249.8 GFLOP a token at 4,096 (causal): the accounting behind 385 TFLOP/s at 19.926 s.
    tokens_per_gpu = published.job.step_tokens / 2048 / metrics["step_time_s"]
    assert metrics["tflops_per_gpu_causal"] == pytest.approx(tokens_per_gpu * 0.2498, rel=1e-3)
    assert metrics["mfu_causal"] == pytest.approx(metrics["tflops_per_gpu_causal"] / 989)
    rows = {row["name"]: row for row in metrics["published"]}
    assert rows["step time"]["error"] == pytest.approx(metrics["step_time_s"] / 19.926 - 1)
    assert all(row["simulated"] is not None for row in rows.values())
    assert sum(metrics["kernel_time_share"]["step"].values()) == pytest.approx(1.0)


def test_a_host_that_needs_longer_to_launch_than_the_kernels_take_sets_the_pace():
    """526 operators of four layers at 1 ms each, against 0.12 s of kernels."""
    step = simulate(load_scenario(ONE_GPU, ["training.host_launch=1 ms"])).result.step
    assert step.host_s == pytest.approx(0.526)
    assert step.pipeline_time_s == step.host_s
    assert step.step_time_s == step.host_s + step.optimizer[0].total_s
    (times,) = rank_times(step)
    assert times.bubble_s == times.waiting_for_host_s == step.host_s - step.pipeline.makespan_s
    ahead = simulate(load_scenario(ONE_GPU, ["training.host_launch=1 us"])).result.step
    assert ahead.pipeline_time_s == ahead.pipeline.makespan_s > ahead.host_s


def test_with_post_validation_a_step_takes_what_its_busiest_rank_takes_from_its_own_begin():
    """At these times that is rank 0, which begins first: W is too short beside F and I for the last
    rank's late end to be what the others wait for."""
    together, staggered = (
        run("training.schedule=zb_h2", MORE_MEMORY, *change).step.pipeline
        for change in ((), (STAGGERED,))
    )
    assert staggered.end_s.tolist() == together.end_s.tolist()
    begin = together.start_s[together.index == 0]
    own = [together.end_s[together.rank == rank].max() - begin[rank] for rank in range(16)]
    assert staggered.makespan_s == max(own) == own[0] == together.makespan_s
    assert staggered.begin_s.tolist() == begin.tolist()
    assert together.begin_s.tolist() == [0.0] * 16
