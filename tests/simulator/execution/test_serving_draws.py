"""Ranks that differ: what is alike folds, what differs waits, and one seed gives one result."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.execution import serving_draws
from simulator.execution.serving_draws import (
    CORES,
    NODES,
    ServingRanks,
    _Kernels,
    expected_s,
    step_draws,
    times_without_waiting,
)
from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import serving_step
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import recorded_trace
from simulator.workload.task_graph import Stream

ALIKE = "skew={setting: none, rows: {form: max_over_mean, max_over_mean: 1.0}}"
"""Drawn on every rank, though nothing makes ranks differ."""


@cache
def step_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return serving_step(prepare_serving(scenario, scenario.job, recorded_trace))


def skewed(**priors):
    """A change that makes ranks differ in these priors, known exactly, and in nothing else."""
    fields = ", ".join(f"{name}: {value}" for name, value in priors.items())
    return f"skew={{setting: none, rows: {{form: max_over_mean, max_over_mean: 1.0}}, {fields}}}"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("decode_ep128_profile", "seed=0"),
        # 288 slots on 72 GPUs: ranks with fewer rows wait for those with 1.125 of the mean.
        ("decode_ep72_h100", "seed=0"),
        ("decode_ep8_h200", "overlap=none"),
        ("decode_tp8_h200", "seed=0"),
        # Groups of 4 GPUs share heads, and 80 of them the experts.
        ("decode_ep320_report", "seed=0"),
        # Its transfers beside compute hold no waiting that would be taken out.
        ("prefill_ep32_h100", "calibration.all_to_all.without_waiting=null"),
        ("mtp_ep128", "seed=0"),
    ],
)
def test_ranks_that_are_alike_are_one_rank(name, change):
    draws = step_draws(step_of(name, ALIKE, change), seed=0, samples=16)
    np.testing.assert_allclose(draws.step_s, draws.inputs["kernels"], rtol=3e-5)
    uneven = name in ("decode_ep72_h100", "decode_ep320_report")
    assert (draws.waited_s[-1] > 1e-3 * draws.ideal_s) == uneven


@pytest.mark.parametrize("name", ["decode_ep8_h200", "decode_tp8_h200", "prefill_ep32_h100"])
def test_ranks_that_are_alike_fold_into_one_to_the_last_bit(name):
    step = step_of(name, ALIKE)
    unfolded = step_draws(step, seed=0, samples=16, attributed=False)
    ranks = unfolded.ranks
    one = ServingRanks(
        ranks.clock[:1, :1],
        ranks.slow[:1, :1],
        tuple(work[:, :1] for work in ranks.work),
        ranks.pause_s[:1, :1],
        [[rows[:1, :1] for rows in layer] for layer in ranks.rows],
    )
    assert ranks.clock[..., 0].size == step.model.job.gpus
    folded = step_draws(step, seed=0, samples=16, attributed=False, ranks=one)
    np.testing.assert_array_equal(folded.step_s, unfolded.step_s)


def test_a_pause_of_every_host_lengthens_the_step_by_itself():
    one = step_draws(step_of("decode_tp8_h200", ALIKE), seed=0, samples=16)
    paused = step_of("decode_tp8_h200", skewed(host_pause="{rate: 1.0, seconds: 2 ms}"))
    two = step_draws(paused, seed=0, samples=16)
    np.testing.assert_allclose(two.step_s - one.step_s, 2e-3, rtol=1e-3)
    assert two.causes_s["host"] == pytest.approx(2e-3, rel=1e-6)


def test_gpus_that_are_all_a_tenth_slower_take_a_tenth_longer_for_kernels_but_not_for_transfers():
    """Nothing overlaps with tensor parallelism, so the step is the sum of its tasks and gaps."""
    slow = step_of("decode_tp8_h200", skewed(slow_gpus="{share: 1.0, slowdown: 0.1}"))
    one = step_draws(step_of("decode_tp8_h200", ALIKE), seed=0, samples=16)
    two = step_draws(slow, seed=0, samples=16)
    fixed = [
        task.collective or task.stream is Stream.COMMUNICATION for task in slow.log.graph.tasks
    ]
    kernels = slow.seconds[~np.array(fixed)].sum()
    more = np.median(two.step_s - one.step_s)
    assert more == pytest.approx(0.1 * kernels, rel=0.1)
    gaps = slow.log.span_s - slow.seconds.sum()
    assert gaps >= -1e-9


def test_a_lower_clock_slows_the_share_of_attentions_core_that_goes_with_it():
    """Two of 3 s each make 6 s."""
    step = step_of("decode_tp8_h200", ALIKE)
    operators = step.log.graph.operators
    core = next(task for task in step.log.graph.tasks if operators[task.operator].kind in CORES)
    scaled, gap = np.full((len(operators), 2), 3.0), np.zeros(2)
    kernels = _Kernels(step, scaled, gap, np.ones(NODES), spread=False)
    share = float(kernels._clocked[core.operator])
    assert 0 < share <= 1
    found = kernels.kind([core, core])
    assert found.cores.tolist() == [6.0, 6.0]
    assert found.cores_clocked.tolist() == pytest.approx([6 * share] * 2)


@pytest.mark.parametrize(
    ("name", "changes", "same"),
    [
        ("prefill_ep32_profile", (), False),
        ("prefill_ep32_profile", ("overlap=none", "micro_batches=1"), True),
        ("prefill_ep32_profile", ("calibration.all_to_all.without_waiting=null",), True),
        ("decode_ep128_profile", (), True),
    ],
)
def test_times_measured_beside_compute_alone_are_freed_of_waiting(name, changes, same):
    step = step_of(name, *changes)
    assert (times_without_waiting(step) is step.times) == same


def test_one_seed_gives_one_result_and_another_one_another():
    step = step_of("decode_ep8_h200")
    first, again, other = (step_draws(step, seed=seed, samples=32).step_s for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


@pytest.mark.parametrize("name", ["decode_ep8_h200", "prefill_ep32_h100"])
@pytest.mark.parametrize("prior", ["rows_sd", "clock_sd", "work_sd"])
def test_more_skew_is_never_faster(name, prior):
    """The same random numbers, wider: every draw of the wider one takes at least as long in the
    median."""
    times = [
        np.median(step_draws(step_of(name, skewed(**{prior: sd})), seed=0, samples=32).step_s)
        for sd in (0.0, 0.05, 0.2)
    ]
    assert times == sorted(times)
    assert times[0] < times[2]


def test_popularity_that_leaves_experts_without_rows_reads_fewer_weights():
    """Of 32 experts per GPU each is left out by 64 tokens with (1 - 8 / 256) ** 64."""
    few = ("requests.requests_per_gpu=8", "skew.rows.zipf_exponent=1.2")
    step = step_of("decode_ep8_h200", *few)
    draws = step_draws(step, seed=0, samples=32)
    assert step.loads.active == pytest.approx(32 * (1 - (1 - 8 / 256) ** 64), rel=1e-3)
    assert draws.active_experts < 0.75 * step.loads.active


def test_the_expected_time_is_the_median_and_its_causes_sum_to_what_it_has_beyond_the_ideal():
    step = step_of("decode_ep144_day6")
    draws = step_draws(step, seed=0)
    assert draws.expected_s == np.median(draws.step_s)
    assert len(draws.step_s) >= 200
    assert sum(draws.causes_s.values()) == pytest.approx(draws.expected_s - step.step_s, rel=1e-9)
    assert expected_s(step) == expected_s(step, draws.ranks) == draws.expected_s
    assert {
        "skew.rows.drift",
        "skew.rows.zipf_exponent",
        "skew.clock_sd",
        "kernels",
    } <= draws.inputs.keys()
    assert np.all(np.diff(draws.waited_s) >= 0)


def test_gpus_that_share_heads_are_neighbours_and_two_groups_of_four_one_machine():
    """Of 40 machines of eight GPUs about half are slow, whole machines each time."""
    slow = step_of("decode_ep320_report", skewed(slow_gpus="{share: 0.5, slowdown: 0.1}"))
    ranks = step_draws(slow, seed=0, samples=8, attributed=False).ranks
    assert ranks.slow.shape == (4, 80, 8)
    machines = ranks.slow.swapaxes(0, 1).reshape(40, 8, 8)
    np.testing.assert_array_equal(machines, np.repeat(machines[:, :1], 8, axis=1))
    assert 0.3 < np.mean(ranks.slow > 1) < 0.7


def test_ideal_ranks_are_not_drawn():
    step = step_of("decode_ep8_h200", "skew=none")
    assert expected_s(step) == step.step_s


def test_low_latency_ranks_wait_less_than_behind_a_barrier():
    """The same step, and the same with a barrier before each transfer."""
    step = step_of("decode_ep72_h100", skewed(rows_sd=0.2, work_sd=0.2))
    graph = step.model.graph
    barred = replace(graph, tasks=tuple(replace(task, barrier=True) for task in graph.tasks))
    behind = replace(step, model=replace(step.model, graph=barred))
    free, held = (step_draws(one, seed=0, samples=32).step_s for one in (step, behind))
    assert np.all(free <= held * (1 + 1e-6))
    assert np.any(free < held * (1 - 1e-4))


def test_draws_run_in_pieces_and_causes_of_the_first_of_them(monkeypatch):
    step = step_of("decode_ep8_h200")
    drawn, run = [], serving_draws._run_at_once

    def counted(blocks, ranks, waits):
        drawn.append((ranks.clock.shape[2], waits))
        return run(blocks, ranks, waits)

    whole = step_draws(step, seed=0, samples=16, attributed=True)
    monkeypatch.setattr(serving_draws, "_run_at_once", counted)
    monkeypatch.setattr(serving_draws, "ATTRIBUTED", 5)
    monkeypatch.setattr(serving_draws, "AT_ONCE", 6 * 8)
    in_pieces = step_draws(step, seed=0, samples=16, attributed=True)
    # Room for six draws of eight ranks at once asks for 2.7 pieces, next to a power of two the two
    # of eight draws; then five for what ranks that are alike take, of which nobody asks how long
    # they wait.
    assert drawn == [(8, True), (8, True), (5, False)]
    assert in_pieces.step_s.tolist() == whole.step_s.tolist()


def test_the_share_of_a_block_that_goes_with_the_clock_is_that_of_its_tasks_by_their_time():
    """Tasks of experts of 2 and 6 s, a half and a quarter of which go with the clock: 2.5 of 8."""
    operator = SimpleNamespace(kind="masked_grouped_gemm")
    kernels = SimpleNamespace(
        _gap=np.array([0.5]),
        _ratios={0: np.array([1.0, 2.0, 0.1]), 1: np.array([1.0, 3.0, 0.1])},
        _scaled=np.array([[2.0], [6.0]]),
        _clocked=np.array([0.5, 0.25]),
        _step=SimpleNamespace(
            log=SimpleNamespace(graph=SimpleNamespace(operators=[operator, operator]))
        ),
        varies=lambda task: True,
    )
    block = [
        SimpleNamespace(
            operator=n, barrier=False, part="experts", collective=False, stream=Stream.COMPUTE
        )
        for n in range(2)
    ]
    found = _Kernels.kind(kernels, block)
    assert found.of_rows.tolist() == [[8.0], [22.0]]
    assert found.rows_clocked.tolist() == [2.5 / 8]
    assert found.fixed.tolist() == [0.5]
