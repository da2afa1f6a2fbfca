"""Sample node-limited routing: which experts random scores send each token to.

A gate in numpy that really selects, so that uneven counts, distinct nodes and saved bytes come out
of it. Sources: DeepSeek-V3 Technical Report (arXiv 2412.19437), section 2.1.2 and the node-limited
routing of 2.1.2; the maximum rule is how DeepEP's internode test makes its traffic.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

GroupScore = Literal["two_best", "maximum"]
"""What a group of experts is worth: the sum of its two best scores (V3), or its best one."""

MOST_SCORES = 2**29
"""Scores of one draw; as logits and scores they take 4 GiB."""


def select_experts(
    scores: npt.NDArray[np.floating],
    *,
    top_k: int,
    groups: int,
    kept_groups: int,
    group_score: GroupScore,
) -> npt.NDArray[np.int16]:
    """Return the experts of each token, [tokens, top_k], in no particular order.

    Parameters
    ----------
    scores: [tokens, experts], larger is better; experts of a group lie side by side.
    groups: number of groups; each token goes to experts of its ``kept_groups`` best groups only.

    Raises ValueError where groups do not divide the experts, or hold too few of them.
    """
    tokens, experts = scores.shape
    if experts % groups:
        raise ValueError(f"{groups} groups do not divide {experts} experts")
    size = experts // groups
    kept = min(kept_groups, groups)
    if kept * size < top_k:
        raise ValueError(f"{kept} groups of {size} experts hold fewer than top_k {top_k}")
    if kept < groups:
        by_group = scores.reshape(tokens, groups, size)
        if group_score == "maximum" or size < 2:
            worth = by_group.max(axis=2)
        else:
            worth = np.partition(by_group, size - 2, axis=2)[..., size - 2 :].sum(axis=2)
        dropped = np.argpartition(worth, groups - kept, axis=1)[:, : groups - kept]
        masked = by_group.copy()
        masked[np.arange(tokens)[:, None], dropped] = -np.inf
        scores = masked.reshape(tokens, experts)
    best = np.argpartition(scores, experts - top_k, axis=1)[:, experts - top_k :]
    return best.astype(np.int16)


def random_scores(
    tokens: int, experts: int, *, kind: Literal["sigmoid", "absolute"], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Gate scores of random normal logits [tokens, experts].

    sigmoid: V3's affinities. absolute: |logit| + 1, as DeepEP's tests draw them.
    """
    if tokens * experts > MOST_SCORES:
        raise ValueError(
            f"scores of {tokens} tokens for {experts} experts take "
            f"{tokens * experts * 4 / 2**30:.0f} GiB; allowed: at most {MOST_SCORES // experts} "
            "tokens per GPU"
        )
    logits = rng.standard_normal((tokens, experts), dtype=np.float32)
    if kind == "absolute":
        return np.abs(logits) + np.float32(1)
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)
