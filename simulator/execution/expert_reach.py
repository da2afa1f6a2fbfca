"""How many nodes and GPUs a token's experts lie on, and so where dispatch sends it.

What is counted is kept for the user's next process.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.kept_files import code_digest, digest_of, keep, read_kept
from reference_model.config import ModelConfig
from reference_model.trace import user_cache_folder
from simulator.hardware.network.groups import Reach
from simulator.workload import experts, gating

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
    gate = (
        config.n_routed_experts,
        config.n_group,
        config.topk_group,
        config.num_experts_per_tok,
        config.topk_method,
    )
    folder = user_cache_folder() / "expert_reach"
    digest = digest_of((repr((expert_of_slot, gate, parts, seed)), _code_digest()))
    kept = read_kept(folder, digest)
    if kept is None:
        found = _counted(expert_of_slot, config, parts, seed)
        keep(folder, digest, json.dumps((found.reached, found.gpus)))
        return found
    reached, gpus = json.loads(kept)
    return Reach(parts=parts, reached=tuple(reached), gpus=gpus)


@cache
def _code_digest() -> str:
    return code_digest(map(Path, (__file__, experts.__file__, gating.__file__)))


def _counted(
    expert_of_slot: tuple[int, ...], config: ModelConfig, parts: tuple[int, ...], seed: int
) -> Reach:
    slots = np.array(expert_of_slot, dtype=np.int64)
    gpus = sum(parts)
    gpu = np.arange(len(slots)) * gpus // len(slots)
    node = np.repeat(np.arange(len(parts)), parts)[gpu]
    of_node, of_gpu = experts.share_of_tokens(
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
