"""Ranks that differ: what is alike folds, what differs waits, and one seed gives one result."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.execution import serving_draws
from simulator.execution.draws import drawn
from simulator.execution.serving_blocks import NODES, BlockKind
from simulator.execution.serving_draws import (
    ServingRanks,
    draw_ranks,
    expected_s,
    priors_of,
    step_draws,
    times_without_waiting,
)
from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import serving_step
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import recorded_trace
from simulator.workload.task_graph import Stream, Task, TaskGraph

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
    step = step_of(name, ALIKE, change)
    draws = step_draws(step, seed=0, samples=16)
    np.testing.assert_allclose(draws.step_s, draws.inputs["kernels"], rtol=3e-5)
    uneven = name in ("decode_ep72_h100", "decode_ep320_report")
    assert (draws.waited_s[-1] > 1e-3 * step.step_s) == uneven


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


def test_pauses_of_fewer_than_half_of_all_draws_are_no_cause_of_their_median():
    """One of eight hosts pauses in a third of the draws: 1 - 0.95 ** 8."""
    rare = skewed(host_pause="{rate: 0.05, seconds: 2 ms}")
    draws = step_draws(step_of("decode_tp8_h200", rare), seed=0, samples=16)
    longest = draws.ranks.pause_s.max(axis=(0, 1))
    assert sorted(set(longest.tolist())) == [0.0, pytest.approx(2e-3)]
    assert 0 < (longest > 0).sum() < 8
    assert draws.causes_s["host"] == 0.0


def test_rows_beyond_the_last_node_by_rounding_go_on_as_between_the_last_two():
    """Squares at 33 nodes, of which a hundredth of a node beyond the last adds 63 hundredths."""
    squares = np.arange(NODES, dtype=np.float32)[:, None] ** 2
    expert = replace(of_a_block(fixed=0.0), of_rows=squares, on_sms=False)
    rows = [[np.float32([[[32.01]], [[31.5]]])]]
    blocks = SimpleNamespace(
        kinds=(expert,), kind_of=(0,), rows_of=((0, 0),), fewest=0.0, nodes_per_row=1.0
    )
    ((took, _),) = serving_draws._durations(blocks, ranks_of_two(rows=rows))
    assert took[:, 0, 0] == pytest.approx([32**2 + 0.63, 31.5 * 63 - 31 * 32], rel=1e-5)


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
    share = 1 - np.median(one.step_s / two.step_s)
    assert two.causes_s["slower GPUs"] == pytest.approx(two.expected_s * share, rel=1e-4)


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
    assert step.active_experts == pytest.approx(32 * (1 - (1 - 8 / 256) ** 64), rel=1e-3)
    assert draws.active_experts < 0.75 * step.active_experts


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
    step_draws(step, seed=0, samples=72, attributed=True)
    assert drawn == [(72, True), (64, False)]
    drawn.clear()
    monkeypatch.setattr(serving_draws, "ATTRIBUTED", 5)
    monkeypatch.setattr(serving_draws, "AT_ONCE", 6 * 8)
    in_pieces = step_draws(step, seed=0, samples=16, attributed=True)
    # Room for six draws of eight ranks at once asks for 2.7 pieces, next to a power of two the two
    # of eight draws; then five for what ranks that are alike take, of which nobody asks how long
    # they wait.
    assert drawn == [(8, True), (8, True), (5, False)]
    assert in_pieces.step_s.tolist() == whole.step_s.tolist()


def test_ranks_are_drawn_as_groups_that_share_heads_and_their_neighbours(monkeypatch):
    """Eight GPUs, pairs of which share heads, all a tenth slower and paused twice for 3 s, with
    rows of each GPU by its number, then ten more in the second micro-batch."""
    asked = []

    def rows_over_mean(model, *, layers, mean_rows, priors, rng):
        asked.append((layers, mean_rows))
        return [[np.arange(8.0)[:, None] + 10 * batch for batch in range(2)]]

    monkeypatch.setattr(serving_draws, "rows_over_mean", rows_over_mean)
    model = SimpleNamespace(
        job=SimpleNamespace(gpus=8, attention_tp=2, micro_batches=2),
        cluster=SimpleNamespace(node=SimpleNamespace(gpus=4)),
        graph=SimpleNamespace(layers=("dense", "moe", "moe", "mtp")),
        expert_ranks=8,
    )
    names = ("clock_sd", "work_sd", "slow_gpus.share", "slow_gpus.slowdown", "host_pause.rate")
    values = (0.0, 0.25, 1.0, 0.1, 2.0)
    priors = {name: np.array([value]) for name, value in zip(names, values, strict=True)}
    priors["host_pause.seconds"] = np.array([3.0])
    step = SimpleNamespace(model=model, mean_rows=7.0)
    found = draw_ranks(step, priors, np.random.default_rng(5))
    assert asked == [(3, 7.0)]
    assert found.clock.tolist() == np.ones((2, 4, 1)).tolist()
    assert found.slow.tolist() == np.full((2, 4, 1), np.float32(1.1)).tolist()
    assert found.pause_s.tolist() == np.full((2, 4, 1), 6.0).tolist()
    for batch, part in enumerate(found.rows[0]):
        assert (part[..., 0] - 10 * batch).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    # Behind numbers of eight clocks, two machines and eight pauses, one for each group and batch.
    rng = np.random.default_rng(5)
    rng.standard_normal((8, 1), dtype=np.float32), rng.random((2, 1), dtype=np.float32)
    rng.random((8, 1))
    first, second = (1 + 0.25 * rng.standard_normal((1, 4, 1)) for _ in range(2))
    expected = (first, second, (first + second) / 2)
    for work, each in zip(found.work, expected, strict=True):
        assert work == pytest.approx(each, rel=1e-6)

    # Two GPUs have rows of their own, one has all; so has each of two groups of four.
    def one_each(model, *, layers, mean_rows, priors, rng):
        return [[np.ones((model.job.gpus, 1))]]

    monkeypatch.setattr(serving_draws, "rows_over_mean", one_each)
    for gpus, layers in ((2, 1), (1, 0)):
        model.job.gpus = model.expert_ranks = gpus
        model.job.attention_tp = 1
        assert len(draw_ranks(step, priors, np.random.default_rng(5)).rows) == layers
    model.job.gpus, model.job.attention_tp = 8, 2
    model.expert_ranks = 4
    assert draw_ranks(step, priors, np.random.default_rng(5)).rows == []


def test_the_busiest_rank_is_that_of_each_layer_and_draw():
    one = np.ones((1, 1, 1), dtype=np.float32)
    # [GPUs of a group, groups, draws]: 3 and 5, 1 and 2; 4 on average in the one and 1.5.
    layers = [[np.array([[[3.0, 1.0]], [[1.0, 5.0]]])], [np.array([[[1.0, 2.0]], [[0.5, 0.0]]])]]
    ranks = ServingRanks(one, one, (), one, layers)
    assert ranks.max_over_mean == (4 + 1.5) / 2
    assert replace(ranks, rows=[]).max_over_mean == 1.0
    assert [part.tolist() for part in ranks.of(slice(1, 2)).rows[0]] == [[[[1.0]], [[5.0]]]]


def test_active_experts_are_those_of_the_rows_of_all_ranks(monkeypatch):
    """A tenth of an expert for each row: of four rows on average, 0.5 and 1.5 of them, and 1 in the
    second micro-batch."""
    monkeypatch.setattr(serving_draws, "slot_shares", lambda _: None)
    monkeypatch.setattr(serving_draws, "distinct_slots", lambda _, rows: rows / 10)
    monkeypatch.setattr(serving_draws, "BALANCED_LAYERS", 1)
    rows = [[np.array([0.5, 1.5]), np.array([1.0])], [np.array([99.0])]]
    step = SimpleNamespace(model=None, mean_rows=4.0, active_experts=7.0)
    found = serving_draws._active_experts(step, SimpleNamespace(rows=rows))
    assert found == pytest.approx((0.2 + 0.6 + 0.4) / 3, rel=1e-12)
    assert serving_draws._active_experts(step, SimpleNamespace(rows=[])) == 7.0


def test_causes_are_what_the_median_has_beyond_the_ideal_time():
    found = serving_draws._causes(
        np.array([1.0, 2.0, 9.0]), ideal_s=1.0, kernels_s=np.array([1.5, 1.25, 1.0]), slower=0.125,
        paused_s=0.0625,
    )  # fmt: skip
    assert found == {
        "imbalance": 1 - 0.25 - 0.0625 - 0.25,
        "slower GPUs": 0.25,
        "host": 0.0625,
        "uncertain inputs": 0.25,
    }


def of_a_block(**changes):
    """A block of one draw that takes nothing but what is said."""
    none = np.zeros(1, dtype=np.float32)
    fields = dict.fromkeys(
        ("fixed", "plain", "clocked", "cores", "cores_clocked", "rows_clocked"), none
    )
    given = {name: np.float32([value]) for name, value in changes.items()}
    plain = {"micro_batch": 0, "on_sms": True, "of_rows": None, "sends": None}
    return BlockKind(**fields | plain | given)


def ranks_of_two(*, slow=1.0, rows=()):
    """Two GPUs, the second a fifth slower in what goes with the clock and paused for 100 s, whose
    attention has half as much work again."""
    alike = np.full((2, 1, 1), slow, dtype=np.float32)
    clock, pause = (np.float32([[[low]], [[high]]]) for low, high in ((1.0, 1.2), (0.0, 100.0)))
    work = (np.full((1, 1, 1), 1.5, dtype=np.float32),)
    return ServingRanks(clock, alike, work, pause, rows)


def test_a_kernel_is_longer_by_clock_slow_gpu_and_work_and_a_transfer_by_none():
    kind = of_a_block(fixed=1.0, plain=2.0, clocked=0.5, cores=3.0, cores_clocked=1.0)
    ranks = ranks_of_two(slow=2.0)
    found = serving_draws._same_on_layers(kind, ranks, ranks.clock - 1)
    expected = [1 + 2 * (2 + 1.5 * 3), 1 + 2 * (2 + 0.1 + 1.5 * 3.2)]
    assert found[:, 0, 0] == pytest.approx(expected, rel=1e-6)
    transfer = replace(kind, on_sms=False)
    assert serving_draws._same_on_layers(transfer, ranks, ranks.clock - 1).tolist() == [1.0]


@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_experts_are_as_long_as_their_rows_and_the_first_block_as_the_pause(slow):
    """10 s for each row above half of the mean, half of which goes with the clock: 5 s of the first
    rank and 12.5 s of the second, 7.5 and 2.5 in the next layer, behind a block of 1 s; transfers
    take as long and 0.25 s besides."""
    of_rows = np.linspace(0.0, 10.0, NODES, dtype=np.float32)[:, None]
    first = of_a_block(fixed=1.0)
    expert = replace(of_a_block(fixed=1.0, rows_clocked=0.5), of_rows=of_rows)
    wire = replace(expert, on_sms=False, fixed=np.float32([0.25]), sends=np.float32([7]))
    rows = [[np.float32([[[1.0]], [[1.5]]])], [np.float32([[[1.25]], [[0.75]]])]]
    blocks = SimpleNamespace(
        kinds=(first, expert, wire), kind_of=(2, 0, 1, 2, 1),
        rows_of=((0, 0), (-1, 0), (0, 0), (1, 0), (1, 0)), fewest=0.5, nodes_per_row=NODES - 1.0,
    )  # fmt: skip
    found = list(serving_draws._durations(blocks, ranks_of_two(slow=slow, rows=rows)))
    took = [np.broadcast_to(each, (2, 1, 1))[:, 0, 0] for each, _ in found]
    assert took[0] == pytest.approx([5.25, 10.25], rel=1e-5)
    assert took[1] == pytest.approx([1.0, 101.0], rel=1e-5)
    assert took[2] == pytest.approx([slow * 5 + 1, slow * 10 * 1.1 + 1], rel=1e-5)
    assert took[3] == pytest.approx([7.75, 2.75], rel=1e-5)
    assert took[4] == pytest.approx([slow * 7.5 + 1, slow * 2.5 * 1.1 + 1], rel=1e-5)
    assert [sends is seconds for seconds, sends in found] == [False, True, True, False, True]
    assert found[0][1].tolist() == [7.0]


def test_a_rank_waits_for_as_long_as_it_would_have_ended_sooner(monkeypatch):
    """Ranks compute 1 s and 3 s, exchange for 2 s once both are there, and compute 1 s and 2 s: the
    first could have begun again at 3 s in the place of 5, and waits for the end of the second. In
    another draw all of it takes twice as long."""
    tasks = [
        Task(0, stream, 0, 0, "attention_0", False, collective, depends_on=after)
        for stream, collective, after in (
            (Stream.COMPUTE, False, ()),
            (Stream.COMMUNICATION, True, (0,)),
            (Stream.COMPUTE, False, (1,)),
        )
    ]
    seconds = [
        np.float32([[[first, 2 * first]], [[second, 2 * second]]])
        for first, second in ((1, 3), (2, 2), (1, 2))
    ]
    monkeypatch.setattr(serving_draws, "_durations", lambda *_: ((each, each) for each in seconds))
    blocks = SimpleNamespace(
        graph=TaskGraph("three", ("moe",), (SimpleNamespace(name="x"),), tuple(tasks)),
        gap_s=np.zeros(1, dtype=np.float32),
        joins=((), (0, 1), ()),
    )
    ranks = replace(ranks_of_two(), clock=np.ones((2, 1, 2), dtype=np.float32))
    ends, waited = serving_draws._run_at_once(blocks, ranks, True)
    assert (ends.tolist(), waited.tolist()) == ([7.0, 14.0], [[0.0, 0.0], [2.0 + 1.0, 6.0]])


def test_ranks_are_drawn_from_the_priors_of_each_draw_by_numbers_of_their_own():
    step = step_of("decode_ep8_h200")
    drawn_step = step_draws(step, seed=3, samples=4, attributed=False)
    priors = {
        name: drawn(prior, drawn_step.inputs.get(f"skew.{name}", np.zeros(4)))
        for name, prior in priors_of(step.model.job.skew).items()
    }
    again = draw_ranks(step, priors, np.random.default_rng((3, 1)))
    assert drawn_step.ranks.clock.tolist() == again.clock.tolist()
    assert drawn_step.ranks.rows[-1][-1].tolist() == again.rows[-1][-1].tolist()
    uncertain = {
        name for name, prior in priors_of(step.model.job.skew).items() if prior.high > prior.low
    }
    assert {name for name in drawn_step.inputs if name.startswith("skew.")} == {
        f"skew.{name}" for name in uncertain
    }


@pytest.mark.parametrize(("draws", "pieces"), [(256, [256]), (2048, [2048]), (4096, [2048] * 2)])
def test_a_pass_holds_about_sixteen_thousand_gpus_times_draws(draws, pieces, monkeypatch):
    class Draws:
        """Eight GPUs in so many draws."""

        def __init__(self, count):
            self.clock = np.zeros((8, 1, count))

        def of(self, some):
            return Draws(some.stop - some.start)

    passes = []

    def run(blocks, ranks, waits):
        passes.append(ranks.clock.shape[2])
        return np.ones(passes[-1]), np.full((8, passes[-1]), 2.0)

    monkeypatch.setattr(serving_draws, "_run_at_once", run)
    ends, waited = serving_draws._run(Draws(draws), Draws(draws), waits=True)
    assert passes == pieces
    assert (ends.tolist(), waited.tolist()) == ([1.0] * draws, [2.0] * 8)
