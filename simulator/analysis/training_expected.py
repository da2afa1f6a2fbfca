"""What the draws of a training step say: expected values, intervals, waiting, and what moves them.

The expected step time is the median of the draws. Where its parts have to sum to it, they are means
over the fifth of the draws around the median, scaled to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.execution.draws import ends
from simulator.execution.training_draws import TrainingDraws

Array = NDArray[np.float64]

MIDDLE = 0.2
"""Share of the draws around the median over which parts of a step are averaged."""

CAUSES = ("uncertain inputs", "imbalance", "slower GPUs", "host")
"""What lies between the ideal step and the expected one, in the order in which it is told apart."""

DOCUMENTS = "documents"
"""After imbalance, of a job that packs documents."""


def central_mean(drawn: TrainingDraws, values: Array) -> Array:
    """[...], mean of [..., draws] over the draws around the median step, scaled to that step."""
    order = np.argsort(drawn.step_s, kind="stable")
    count = len(order)
    reach = max(1, round(count * MIDDLE / 2))
    middle = order[max(0, count // 2 - reach) : count // 2 + reach]
    scale = drawn.expected_s / drawn.step_s[middle].mean()
    return np.asarray(values[..., middle].mean(axis=-1) * scale)


def cause_seconds(drawn: TrainingDraws, *, ideal_s: Seconds) -> dict[str, Seconds]:
    """{cause: what it adds to the step}, of CAUSES and DOCUMENTS; they sum to the expected step
    less the ideal one."""
    names, steps = list(CAUSES), [drawn.alike_s, drawn.uneven_s, drawn.slower_s, drawn.step_s]
    if drawn.equal_documents_s is not None:
        after = names.index("imbalance")
        names.insert(after + 1, DOCUMENTS)
        steps.insert(after, drawn.equal_documents_s)
    medians = [ideal_s, *(float(np.median(step)) for step in steps)]
    return dict(zip(names, np.diff(medians).tolist(), strict=True))


def waiting_metrics(drawn: TrainingDraws, *, ideal_s: Seconds) -> dict[str, Any]:
    """What lies between ideal and expected by cause, and what ranks wait by rank and before each
    all-to-all of a pair."""
    causes = cause_seconds(drawn, ideal_s=ideal_s)
    assert drawn.waiting is not None, "only ranks that differ wait"
    return {
        "by_cause_s": causes,
        "by_rank_s": drawn.waiting.by_rank_s.tolist(),
        "pair_notify_s": drawn.waiting.notify_s.tolist(),
        "pair_notify_ends_s": list(drawn.waiting.mean_ends_s),
        "pair_all_to_all_s": drawn.waiting.kernel_s.tolist(),
        "upper_bound_s": float(np.median(drawn.upper_bound_s)),
    }


def prior_shares(drawn: TrainingDraws) -> dict[str, float]:
    """{input: share of the variance of the logarithm of the step time}, first-order.

    The square of the correlation with each prior, with kernel times as far as the other inputs of a
    step of ranks that are alike do not explain them, and the rest: chance, and inputs together.
    """
    outcome = np.log(drawn.step_s)
    inputs = {name: values for name, values in drawn.priors.items() if np.ptp(values) > 0}
    of_alike = [inputs[name] for name in _OF_ALIKE if name in inputs]
    inputs["kernel times"] = _residual(np.log(drawn.alike_s), of_alike)
    shares = {name: _correlation(values, outcome) ** 2 for name, values in inputs.items()}
    return shares | {"chance and rest": max(0.0, 1 - sum(shares.values()))}


_OF_ALIKE = ("optimizer.efficiency", "optimizer.cpu_efficiency", "lone_chunks_keep_sms")
"""Priors that move a step of ranks that are alike."""


def ridge(drawn: TrainingDraws) -> dict[str, float] | None:
    """How two priors trade against each other in a step time, which fixes a line and no point.

    rows_sd_per_clock_sd: how much less of the one makes up for more of the other. None where either
    is known exactly.
    """
    names = ("skew.rows_sd", "skew.clock_sd")
    known = [drawn.priors[name] for name in names]
    if any(np.ptp(values) == 0 for values in known):
        return None
    others = [v for k, v in drawn.priors.items() if k not in names and np.ptp(v) > 0]
    columns = np.stack([*known, *others, np.log(drawn.alike_s), np.ones_like(known[0])], axis=1)
    slopes = np.linalg.lstsq(columns, np.log(drawn.step_s), rcond=None)[0]
    return {
        "step_per_rows_sd": float(slopes[0]),
        "step_per_clock_sd": float(slopes[1]),
        "rows_sd_per_clock_sd": float(slopes[1] / slopes[0]),
    }


def _residual(values: Array, inputs: list[Array]) -> Array:
    columns = np.stack([*inputs, np.ones_like(values)], axis=1)
    return np.asarray(values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0])


def _correlation(one: Array, other: Array) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def interval_metrics(
    drawn: TrainingDraws, *, rates: Mapping[str, float], costs: Mapping[str, float]
) -> dict[str, list[float]]:
    """{metric: [low, high]} of the step and the pair, and of what follows from the step.

    Args:
        rates: {metric: its value times the step time}, of those that go as one over it.
        costs: {metric: its value over the step time}.
    """
    low, high = ends(drawn.step_s)
    found = {"step_time_s": [low, high], "pair_time_s": ends(drawn.pair_s)}
    found |= {name: [work / high, work / low] for name, work in rates.items()}
    found |= {name: [each * low, each * high] for name, each in costs.items()}
    return found
