"""Figures of a training step that follow from the times of its ranks."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from reference_model.pipeline_actions import (
    FORWARD_WORK,
    FULL_BACKWARD,
    INPUT_BACKWARD,
    OVERLAPPED,
    WEIGHT_GRADIENT,
)
from simulator.analysis import training_metrics as training_metrics_module
from simulator.analysis.run import simulate
from simulator.analysis.training_metrics import (
    _COSTS,
    _RATES,
    RankTimes,
    _cpu_memory,
    _drawn_ranks,
    _intervals,
    provenance_shares,
    rank_times,
    training_metrics,
    transfer_limits,
    uneven_ranks,
    what_ifs,
)
from simulator.execution.host_state import HostState, averaging_seconds
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.prediction import MEASURED, MODELLED
from simulator.scenario.files import load_scenario


def busy(seconds):
    return RankTimes(seconds, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("chosen", "way_out"),
    [
        (False, "training.stages=default looks for a faster split"),
        (
            True,
            "whole layers and memory allow no faster split of those tried; fewer training.pp might",
        ),
    ],
)
def test_a_rank_that_keeps_the_others_waiting_is_named_with_its_share(chosen, way_out):
    # A mean of 10: rank 2 works a fifth more, rank 0 a quarter less than rank 2.
    (text,) = uneven_ranks([busy(seconds) for seconds in (9.0, 9.0, 12.0)], chosen=chosen)
    assert text == (
        "stages: pipeline rank 2 works 20% longer than the mean of the ranks, and rank 0 25% less "
        f"than it; {way_out}"
    )


@pytest.mark.parametrize("seconds", [(9.6, 9.6, 10.8), (1.0,)])
def test_a_tenth_over_the_mean_is_what_whole_layers_leave(seconds):
    assert uneven_ranks([busy(each) for each in seconds], chosen=True) == []


def test_rates_are_per_gpu_the_bubble_is_the_largest_and_ranks_differ_without_intervals_too():
    """15,360 sequences of 4,096 tokens on 2,048 GPUs."""
    run = simulate(load_scenario("dualpipe_h800_2048")).result
    metrics = training_metrics(run, with_intervals=False)
    step = metrics["step_time_s"]
    assert metrics["tokens_per_second_per_gpu"] == pytest.approx(15360 * 4096 / step / 2048)
    hours = 1e12 / (15360 * 4096) * step * 2048 / 3600
    assert metrics["gpu_hours_per_trillion_tokens"] == pytest.approx(hours, rel=1e-12)
    assert metrics["cost_usd_per_trillion_tokens"] == pytest.approx(2 * hours, rel=1e-12)
    peak = run.scenario.cluster.node.gpu.peak("bfloat16")
    for masked in ("causal", "non_causal"):
        rate = metrics[f"tflops_per_gpu_{masked}"] * 1e12
        assert metrics[f"mfu_{masked}"] == pytest.approx(rate / peak, rel=1e-12)
    bubbles = [rank["bubble_s"] for rank in metrics["ranks"]]
    assert metrics["bubble_s"] == max(bubbles) > min(bubbles)
    assert step > metrics["ideal"]["step_time_s"] == run.step.step_time_s
    assert "interval_80" not in metrics


def test_the_times_of_a_rank_are_all_of_the_step_and_its_waits_all_of_its_bubble():
    run = simulate(load_scenario("dualpipe_h800_2048")).result
    work = ("forward_s", "backward_s", "weight_s", "overlapped_s")
    for rank in (asdict(rank) for rank in rank_times(run.step)):
        busy = sum(rank[name] for name in work) + rank["optimizer_s"]
        assert busy + rank["bubble_s"] == pytest.approx(run.step.step_time_s)
    for rank in training_metrics(run, with_intervals=False)["ranks"]:
        waits = sum(rank[f"waiting_for_{what}_s"] for what in ("ranks", "sends", "host"))
        assert waits == pytest.approx(rank["bubble_s"])


def drawn_step():
    """Eleven draws, 1 s apart, of which all but one at either end are the central 80%, on two
    ranks: forward 10 and 20 s, backward in one and in two parts, and so on."""
    later = np.arange(11.0)
    actions = np.array([[10.0, 1.0, 2.0, 3.0, 4.0], [20.0, 2.0, 4.0, 6.0, 8.0]])
    return SimpleNamespace(
        step_s=100.0 + later,
        pair_s=2.0 + later / 10,
        works=(FORWARD_WORK, FULL_BACKWARD, INPUT_BACKWARD, WEIGHT_GRADIENT, OVERLAPPED),
        actions_s=np.repeat(actions[:, :, None], 11, axis=2),
        sends_s=np.full((2, 11), 0.5),
        host_s=np.full(11, 0.25),
        optimizer_s=np.full((2, 11), 5.0),
        memory=np.array([later, later + 10]),
    )


def test_a_rank_waits_for_what_neither_its_work_nor_its_optimizer_takes():
    found = {name: values[:, 3].tolist() for name, values in _drawn_ranks(drawn_step()).items()}
    # 103 s less 20 s of work and 5 s of the optimizer; less 40 s on the second rank.
    assert found == {
        "forward_s": [10, 20],
        "backward_s": [3, 6],
        "weight_s": [3, 6],
        "overlapped_s": [4, 8],
        "bubble_s": [78, 58],
        "optimizer_s": [5, 5],
        "waiting_for_sends_s": [0.5, 0.5],
        "waiting_for_host_s": [0.25, 0.25],
        "waiting_for_ranks_s": [77.25, 57.25],
    }


@pytest.mark.parametrize(("left", "bubble"), [(5e-11, 0.0), (5e-10, 5e-10)])
def test_what_rounding_leaves_of_a_step_is_no_bubble(left, bubble):
    drawn = drawn_step()
    drawn.works, drawn.actions_s = (FORWARD_WORK,), np.full((2, 1, 11), 95.0 - left)
    found = _drawn_ranks(drawn)["bubble_s"][0, 0]
    assert found == pytest.approx(bubble, abs=1e-13)


def test_intervals_are_the_central_draws_and_hold_the_figure_itself():
    rank = {"forward_s": 9.0, "backward_s": 3.0, "weight_s": 4.0, "overlapped_s": 4.0}
    metrics = {
        "step_time_s": 105.0,
        "pair_time_s": 9.0,
        "bubble_s": 70.0,
        "peak_memory_bytes": 15.0,
        "ranks": [rank | {"bubble_s": 80.0, "optimizer_s": 5.0}],
        **dict.fromkeys(_RATES, 2.0),
        **dict.fromkeys(_COSTS, 3.0),
    }
    found = _intervals(drawn_step(), metrics)
    rate, cost = (2 * 105 / 109, 2 * 105 / 101), (3 / 105 * 101, 3 / 105 * 109)
    # The first rank waits longer; the second holds more.
    expected = {
        "step_time_s": (101, 109),
        "pair_time_s": (2.1, 9),
        "bubble_s": (70, 84),
        "peak_memory_bytes": (11, 19),
        "ranks.0.forward_s": (9, 10),
        "ranks.0.backward_s": (3, 3),
        "ranks.0.weight_s": (3, 4),
        "ranks.0.overlapped_s": (4, 4),
        "ranks.0.bubble_s": (76, 84),
        "ranks.0.optimizer_s": (5, 5),
        **dict.fromkeys(_RATES, rate),
        **dict.fromkeys(_COSTS, cost),
    }
    assert {name: tuple(ends) for name, ends in found.items()} == {
        name: pytest.approx(ends, rel=1e-12) for name, ends in expected.items()
    }


def test_a_transfers_limit_is_that_of_its_slowest_and_narrowest_traffic():
    def load(stretch, bandwidth):
        return FabricLoad(nic_stretch=stretch, bandwidth=bandwidth, latency=0.0)

    loads = SimpleNamespace(
        all_to_all=[load(2.0, 30.0), load(1.5, 20.0)],
        sends={0: None, 1: load(1.25, 60.0)},
        dense=[],
        experts=[load(1.0, 50.0)],
    )
    node = SimpleNamespace(nic_bandwidth_per_gpu=50.0)
    run = SimpleNamespace(
        step=SimpleNamespace(loads=loads),
        scenario=SimpleNamespace(cluster=SimpleNamespace(node=node)),
    )
    assert transfer_limits(run) == {
        "nic_bytes_per_s": 50.0,
        "all_to_all": {"nic_stretch": 2.0, "fabric_bytes_per_s": 20.0},
        "pipeline_send": {"nic_stretch": 1.25, "fabric_bytes_per_s": None},
        "dense_parameters": {"nic_stretch": 1.0, "fabric_bytes_per_s": None},
        "experts": {"nic_stretch": 1.0, "fabric_bytes_per_s": None},
    }


def test_the_gpu_with_most_in_cpu_memory_says_what_it_keeps_and_sends():
    cluster = load_scenario("dualpipe_h800_2048").cluster
    less, most = HostState(9.0, 2.0, 3.0, 4.0, 5.0, 99.0), HostState(8.0, 6.0, 1.0, 2.0, 4.0, 9.0)
    run = SimpleNamespace(host=[less, most], scenario=SimpleNamespace(cluster=cluster))
    assert _cpu_memory(run) == {
        "optimizer_bytes": 8.0,
        "averages_bytes": 6.0,
        "node_bytes": 8 * 14.0,
        "to_cpu_bytes": 1.0 + 4.0,
        "to_gpu_bytes": 2.0,
        "averages_s": averaging_seconds(most, cluster),
    }


@pytest.mark.parametrize(("step_s", "warned"), [(0.5, True), (1.0, False), (1.5, False)])
def test_averages_that_take_longer_than_the_step_on_any_gpu_are_warned_of(
    monkeypatch, step_s, warned
):
    monkeypatch.setattr(training_metrics_module, "averaging_seconds", lambda state, _: state)
    run = SimpleNamespace(
        host=[0.25, 1.0, 0.5],
        scenario=SimpleNamespace(cluster=None),
        step=SimpleNamespace(step_time_s=step_s),
    )
    said = (
        "ema: copying and averaging take 1 s, longer than the step of 500 ms beside which they "
        "run; training.ema=bfloat16 halves them"
    )
    assert training_metrics_module._slow_averages(run) == [said] * warned


def test_draws_in_which_the_fullest_gpu_exceeds_its_memory_are_warned_of():
    """Two ranks in four draws; one draw needs more than 3 GiB, another just as much."""
    gib = 2.0**30
    drawn = SimpleNamespace(memory=np.array([[1, 2, 3, 1], [2, 4, 2, 1]]) * gib)
    assert training_metrics_module._too_full(drawn, 3 * gib) == [
        "memory: in 25% of the draws the rows of the fullest GPU need more than its 3 GiB; "
        "training.skew says how uneven they are"
    ]
    assert training_metrics_module._too_full(drawn, 4 * gib) == []


def test_kernel_time_is_shared_by_where_it_comes_from():
    """2 s and 2 s measured, 4 s modelled: 4 of 8 s each."""
    rests_on = np.array([MEASURED, MODELLED, MEASURED])
    assert provenance_shares(rests_on, np.array([2.0, 4.0, 2.0])) == {
        "measured": 0.5, "interpolated": 0.0, "extrapolated": 0.0, "modelled": 0.5,
    }  # fmt: skip
    assert set(provenance_shares(rests_on[:0], np.array([])).values()) == {0.0}


def test_a_kernel_counts_in_the_step_as_often_as_its_chunk_runs():
    """The shares of the step are those of all its kernels, the pair's those of the pair alone."""
    run = simulate(load_scenario("dualpipe_h800_2048", ["skew=none"])).result
    shares = training_metrics(run)["kernel_time_share"]
    pair, chunks = run.step.pair.cost, run.step.chunks
    for name, asked in (
        ("pair", [(pair, 1)]),
        ("step", [(chunks[key].cost, n) for key, n in run.step.counts.items()]),
    ):
        by_hand = dict.fromkeys(shares[name], 0.0)
        for cost, often in asked:
            for seconds, provenance in zip(cost.seconds, cost.provenance_names(), strict=True):
                by_hand[provenance] += often * seconds
        total = sum(by_hand.values())
        assert shares[name] == pytest.approx(
            {known: value / total for known, value in by_hand.items()}, rel=1e-12
        )


def test_rates_of_a_training_step_by_hand(monkeypatch):
    """32 tokens in 2 s on 4 GPUs that multiply 1,000 FLOP/s at most; half of a sequence of 9 tokens
    is attended to, and a token takes 100 FLOPs there, twice as many without a mask."""
    asked = []

    def flops(model, *, context, causal):
        asked.append((model, context, causal))
        return 100.0 if causal else 200.0

    monkeypatch.setattr(training_metrics_module, "training_flops_per_token", flops)
    gpu = SimpleNamespace(peak=lambda dtype: {"bfloat16": 1000.0}[dtype])
    run = SimpleNamespace(
        job=SimpleNamespace(step_tokens=32, sequence_length=9),
        scenario=SimpleNamespace(
            model="model",
            cluster=SimpleNamespace(node=SimpleNamespace(gpu=gpu), gpu_price=0.5),
        ),
        layout=SimpleNamespace(gpus=4),
        documents=SimpleNamespace(share=0.5),
    )
    ranks = [RankTimes(*range(11)), RankTimes(*range(1, 12))]
    found = training_metrics_module._figures(run, 2.0, 0.25, ranks, 7.0)
    assert asked == [("model", 4, True), ("model", 4, False)]
    # 16 tokens per second on all GPUs, 4 on each, so that 1e12 take 2.5e11 seconds.
    assert found == {
        "step_time_s": 2.0,
        "tokens_per_day": 16.0 * 86_400,
        "tokens_per_second_per_gpu": 4.0,
        "tflops_per_gpu_causal": pytest.approx(4e-10),
        "tflops_per_gpu_non_causal": pytest.approx(8e-10),
        "mfu_causal": 0.4,
        "mfu_non_causal": 0.8,
        "gpu_hours_per_trillion_tokens": pytest.approx(2.5e11 / 3600),
        "cost_usd_per_trillion_tokens": pytest.approx(1.25e11),
        "pair_time_s": 0.25,
        "bubble_s": 5,
        "peak_memory_bytes": 7.0,
        "ranks": [asdict(rank) for rank in ranks],
    }
    run.documents = None
    training_metrics_module._figures(run, 2.0, 0.25, ranks, 7.0)
    assert asked[2:] == [("model", 9, True), ("model", 9, False)]


def test_a_pair_is_reproduced_where_the_profile_times_all_of_it_beside_its_published_time():
    for changes, kind in (
        ((), "reproduced"),
        (("published=[{name: a, metric: mfu_causal, value: 0.4, source: a test}]",), "predicted"),
        (("training.sequence_length=2048",), "predicted"),
    ):
        run = simulate(load_scenario("dualpipe_h800_2048", ("skew=none", *changes)))
        metrics = run.metrics
        assert metrics["pair_time_kind"] == kind
        # Ranks that do not differ: the step itself, with an interval, and no median of draws.
        assert metrics["step_time_s"] == run.result.step.step_time_s
        assert metrics["interval_80"]["step_time_s"][0] < metrics["step_time_s"]
        assert "ideal" not in metrics
        needed = [rank["total"] for rank in metrics["memory"]]
        assert metrics["peak_memory_bytes"] == max(needed) > min(needed)


def test_dispatch_without_sms_is_named_a_what_if():
    job = load_scenario("dualpipe_h800_2048", ["training.communication_sms=0"]).job
    assert what_ifs(job) == [
        "training.communication_sms: 0: a what-if: no dispatch or combine that keeps no SM was "
        "measured; links alone limit these, and compute has every SM"
    ]
    assert what_ifs(job.model_copy(update={"communication_sms": 1})) == []
