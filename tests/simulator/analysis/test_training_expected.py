"""The expected step, its parts, its causes and what moves it, of made-up draws."""

from types import SimpleNamespace

import numpy as np
import pytest

from simulator.analysis.run import simulate
from simulator.analysis.training_expected import (
    CAUSES,
    cause_seconds,
    central_mean,
    interval_metrics,
    prior_shares,
    ridge,
)
from simulator.analysis.training_metrics import training_metrics
from simulator.execution.training_draws import TrainingDraws
from simulator.scenario.files import load_scenario


def made_up(
    step_s, *, alike_s=None, uneven_s=None, slower_s=None, equal_documents_s=None, priors=()
):
    step_s = np.asarray(step_s, dtype=float)
    nothing = np.zeros((1, len(step_s)))
    given = [step_s if each is None else np.asarray(each) for each in (alike_s, uneven_s, slower_s)]
    return TrainingDraws(
        priors=dict(priors),
        alike_s=given[0],
        uneven_s=given[1],
        slower_s=given[2],
        step_s=step_s,
        pipeline_s=step_s,
        host_s=nothing[0],
        pair_s=step_s,
        upper_bound_s=step_s,
        equal_documents_s=None if equal_documents_s is None else np.asarray(equal_documents_s),
        actions_s=nothing[None],
        works=("F",),
        sends_s=nothing,
        optimizer_s=nothing,
        memory=nothing,
        waiting=None,
    )


def test_the_expected_step_is_the_median_and_its_parts_sum_to_it():
    step = np.arange(1.0, 11.0)  # 1 to 10 s, median 5.5
    drawn = made_up(step[::-1])
    assert drawn.expected_s == 5.5
    parts = np.stack([0.25 * drawn.step_s, 0.75 * drawn.step_s])
    assert central_mean(drawn, parts) == pytest.approx([0.25 * 5.5, 0.75 * 5.5])


def test_causes_lie_between_the_ideal_step_and_the_expected_one():
    drawn = made_up(
        [14.0, 15.0, 16.0],
        alike_s=np.array([10.0, 11.0, 12.0]),
        uneven_s=np.array([12.0, 13.0, 14.0]),
        slower_s=np.array([13.0, 14.5, 15.0]),
    )
    causes = cause_seconds(drawn, ideal_s=10.5)
    assert causes == dict(zip(CAUSES, [0.5, 2.0, 1.5, 0.5], strict=True))
    assert 10.5 + sum(causes.values()) == drawn.expected_s


def test_documents_are_a_cause_of_their_own_between_imbalance_and_slower_gpus():
    drawn = made_up(
        [15.0], alike_s=[11.0], equal_documents_s=[12.0], uneven_s=[14.0], slower_s=[14.5]
    )
    assert cause_seconds(drawn, ideal_s=10.0) == {
        "uncertain inputs": 1.0,
        "imbalance": 1.0,
        "documents": 2.0,
        "slower GPUs": 0.5,
        "host": 0.5,
    }


def test_the_variance_is_shared_among_what_moves_the_step():
    rng = np.random.default_rng(0)
    rows, clock, kernels = rng.standard_normal((3, 20_000))
    drawn = made_up(
        np.exp(0.3 * rows + 0.1 * clock + 0.2 * kernels),
        alike_s=np.exp(0.2 * kernels),
        priors={"skew.rows_sd": rows, "skew.clock_sd": clock, "skew.work_sd": np.zeros(20_000)},
    )
    shares = prior_shares(drawn)
    # 0.09, 0.01 and 0.04 of 0.14; what is known exactly is not named.
    assert shares["skew.rows_sd"] == pytest.approx(9 / 14, abs=0.02)
    assert shares["skew.clock_sd"] == pytest.approx(1 / 14, abs=0.02)
    assert shares["kernel times"] == pytest.approx(4 / 14, abs=0.02)
    assert "skew.work_sd" not in shares
    assert sum(shares.values()) == pytest.approx(1.0, abs=0.05)


def test_one_step_time_lies_on_a_ridge_of_rows_and_clocks():
    rng = np.random.default_rng(0)
    rows, clock = rng.uniform(0.01, 0.1, (2, 500))
    priors = {"skew.rows_sd": rows, "skew.clock_sd": clock}
    drawn = made_up(np.exp(0.75 * rows + 1.5 * clock), alike_s=np.ones(500), priors=priors)
    assert ridge(drawn) == pytest.approx(
        {"step_per_rows_sd": 0.75, "step_per_clock_sd": 1.5, "rows_sd_per_clock_sd": 2.0}
    )
    known = made_up(np.exp(rows), alike_s=np.ones(500), priors=priors | {"skew.clock_sd": 0 * rows})
    assert ridge(known) is None


@pytest.fixture(scope="module")
def metrics():
    return training_metrics(simulate(load_scenario("dualpipe_h800_2048")).result)


def test_ideal_expected_and_interval_have_the_same_names(metrics):
    assert set(metrics["interval_80"]) == set(metrics["ideal"])
    ideal = training_metrics(simulate(load_scenario("dualpipe_h800_2048", ["skew=none"])).result)
    assert metrics["ideal"]["step_time_s"] == ideal["step_time_s"] < metrics["step_time_s"]
    assert metrics["ideal"]["ranks.0.overlapped_s"] == ideal["ranks"][0]["overlapped_s"]
    assert "ideal" not in ideal
    assert len(ideal["published"]) == len(metrics["published"]) == 14


def test_intervals_hold_the_expected_values(metrics):
    for path, (low, high) in metrics["interval_80"].items():
        if not path.startswith("ranks."):
            assert low <= metrics[path] <= high, path
    step, day = metrics["step_time_s"], metrics["tokens_per_day"]
    low, high = metrics["interval_80"]["step_time_s"]
    assert metrics["interval_80"]["tokens_per_day"] == pytest.approx(
        [day * step / high, day * step / low]
    )


def test_the_budget_of_every_rank_sums_to_the_expected_step(metrics):
    for times in metrics["ranks"]:
        parts = ("forward_s", "backward_s", "weight_s", "overlapped_s", "bubble_s", "optimizer_s")
        assert sum(times[name] for name in parts) == pytest.approx(metrics["step_time_s"])
        waits = ("waiting_for_ranks_s", "waiting_for_sends_s", "waiting_for_host_s")
        assert sum(times[name] for name in waits) == pytest.approx(times["bubble_s"])


def test_the_attribution_sums_to_the_expected_step(metrics):
    causes = {cause["name"]: cause["seconds"] for cause in metrics["attribution"]}
    assert sum(causes.values()) == pytest.approx(metrics["step_time_s"], rel=1e-12)
    assert causes["remainder"] == pytest.approx(0.0, abs=1e-9)
    assert set(CAUSES) <= set(causes)
    assert metrics["waiting"]["by_cause_s"] == {name: causes[name] for name in CAUSES}
    assert metrics["waiting"]["upper_bound_s"] > metrics["step_time_s"]
    assert len(metrics["waiting"]["by_rank_s"]) == 64


def test_rates_go_against_the_steps_interval_and_costs_with_it():
    """Steps of 1.5 to 2.5 s, whose 10th and 90th percentile are 1.6 and 2.4: 200 tokens are 83.3 to
    125 per second, 15 dollars per second 24 to 36."""
    drawn = SimpleNamespace(step_s=np.linspace(1.5, 2.5, 11), pair_s=np.full(11, 0.1))

    found = interval_metrics(drawn, rates={"tokens": 200.0}, costs={"dollars": 15.0})

    assert found["step_time_s"] == pytest.approx([1.6, 2.4], rel=1e-12)
    assert found["pair_time_s"] == pytest.approx([0.1, 0.1], rel=1e-12)
    assert found["tokens"] == pytest.approx([200 / 2.4, 125.0], rel=1e-12)
    assert found["dollars"] == pytest.approx([24.0, 36.0], rel=1e-12)
