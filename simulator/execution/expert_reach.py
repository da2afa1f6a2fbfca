"""How many nodes and GPUs a token's experts lie on, and so where dispatch sends it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reference_model.config import ModelConfig
from simulator.hardware.network.groups import Reach
from simulator.workload.experts import share_of_tokens

ROUTED_TOKENS = 8192
"""Tokens whose destinations are counted."""


def expert_reach(
    slots: NDArray[np.int64], *, config: ModelConfig, parts: tuple[int, ...], seed: int
) -> Reach:
    """Count the nodes and GPUs that tokens reach through the model's gate on random scores.

    Nodes with the same number of GPUs are reached alike but for chance, and count as their mean.

    Args:
        slots: [slots], the expert in each; a GPU's slots are neighbours.
        parts: GPUs of the expert-parallel group in each node, or NVLink domain.
        seed: of the scores.
    """
    return _expert_reach(tuple(slots.tolist()), config, parts, seed)


@lru_cache(maxsize=256)
def _expert_reach(
    expert_of_slot: tuple[int, ...], config: ModelConfig, parts: tuple[int, ...], seed: int
) -> Reach:
    slots = np.array(expert_of_slot, dtype=np.int64)
    gpus = sum(parts)
    gpu = np.arange(len(slots)) * gpus // len(slots)
    node = np.repeat(np.arange(len(parts)), parts)[gpu]
    of_node, of_gpu = share_of_tokens(
        slots,
        experts=config.n_routed_experts,
        groups=config.n_group,
        kept_groups=config.topk_group,
        top_k=config.num_experts_per_tok,
        group_score="two_best" if config.topk_method == "noaux_tc" else "maximum",
        destinations=(node, gpu),
        tokens=ROUTED_TOKENS,
        rng=np.random.default_rng(seed),
    )
    size = np.array(parts)
    return Reach(
        parts=parts,
        reached=tuple(float(of_node[size == part].mean()) for part in parts),
        gpus=float(of_gpu.sum()),
    )
