"""Split sequences over GPUs: each computes a part of the tokens and attends to all before them.

A GPU holds the 2 of 2 x ranks equal pieces of a sequence that lie equally far from its two ends, so
that all attend to equally many tokens. Keys and values are gathered as the latent that multi-head
latent attention keeps of them, 576 numbers per token in DeepSeek-V3 where keys and values of all
heads are 40,960; every GPU then expands the latents of all tokens itself. Backward does the same
in reverse: gradients of all tokens' latents are summed over the GPUs, each of which keeps those of
its own tokens. Nothing overlaps the two.

Where GPUs share layers too, each of these gathers and expands the latents of its own share of the
tokens, and tensor parallelism gathers those of all, heads being split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reference_model.trace import Operator, OperatorTrace
from simulator.workload.chunk import OperatorsOf, operators_of
from simulator.workload.load import Load

_OF_ALL_TOKENS = (
    "attention.kv_latent.",
    "attention.kv_a_norm",
    "attention.kv_b_proj",
    "attention.k_rope.",
    "attention.rope_k",
    "attention.k_nope.",
    "attention.v.",
)
"""First words of the operators between the gathered latents and the attention core, and back."""

_GATHERED_FOR = "attention.kv_latent.copy"
_SUMMED_AFTER = "attention.kv_latent.concat"


def check_pieces(sequence_length: int, ranks: int) -> None:
    """Raise ValueError where a sequence has no equal pieces of whole tokens for each GPU."""
    if ranks > 1 and sequence_length % (4 * ranks):
        raise ValueError(
            f"training.context_parallel: {ranks} GPUs hold two pieces each of sequences of "
            f"{sequence_length} tokens; allowed: training.sequence_length a multiple of {4 * ranks}"
        )


def operators_of_part(trace: OperatorTrace, load: Load, ranks: int) -> OperatorsOf:
    """The trace's operators on one of `ranks` GPUs that share sequences; as they are for one.

    Args:
        load: of one GPU; its context is that of whole sequences.

    Raises:
        ValueError: operators of attention that this split does not know.
    """
    if ranks == 1:
        return operators_of(trace, load)
    known: dict[tuple[str, str], Sequence[Operator]] = {}
    own = load.workload
    everyone = own._replace(tokens=ranks * load.tokens)

    def lookup(layer_kind: str, phase: str) -> Sequence[Operator]:
        key = (layer_kind, phase)
        if key not in known:
            known[key] = _split(
                trace.operators(layer_kind, phase, own),
                trace.operators(layer_kind, phase, everyone),
                load,
                ranks,
            )
        return known[key]

    return lookup


def _split(
    own: Sequence[Operator], everyone: Sequence[Operator], load: Load, ranks: int
) -> list[Operator]:
    """The operators of one layer and phase, with a gather before and a sum after those of all
    tokens.

    Args:
        own: at the tokens of one GPU.
        everyone: at the tokens of all GPUs that share its sequences.
    """
    found: list[Operator] = []
    for mine, every in zip(own, everyone, strict=True):
        if mine.name.startswith("attention.indexer."):
            raise ValueError(
                "training.context_parallel: sparse attention selects among the keys of whole "
                "sequences; allowed: 1 for this model"
            )
        if mine.name == _GATHERED_FOR:
            rotary = next(op["columns"] for op in own if op.name == "attention.k_rope.copy")
            found.append(_exchange(every, "gather", mine["columns"] + rotary, ranks))
        if mine.name.startswith(_OF_ALL_TOKENS):
            found.append(every)
        elif mine.name.startswith("attention.core") and "query_length" in dict(mine.sizes):
            found.append(_pieces(mine, load.context, ranks))
        else:
            found.append(mine)
        if mine.name == _SUMMED_AFTER:
            found.append(_exchange(every, "scatter", mine["columns"], ranks))
    return found


def _pieces(core: Operator, context: int, ranks: int) -> Operator:
    """Attention of a GPU's two pieces of each sequence to all tokens before each of their own.

    One piece ends where the other's distance from the end is: together they attend to as many keys
    as two pieces in the middle.
    """
    piece = context // (2 * ranks)
    sizes = dict(core.sizes) | {
        "sequences": 2 * core["sequences"],
        "query_length": piece,
    }
    if "kv_length" in sizes:
        sizes["kv_length"] = (2 * ranks + 1) * piece // 2
    return replace(core, sizes=tuple(sorted(sizes.items())))


def _exchange(beside: Operator, what: str, columns: int, ranks: int) -> Operator:
    """All-gather or reduce-scatter of the BF16 latents of all tokens, with their rotary key."""
    kind = "gather_tokens" if what == "gather" else "scatter_sums"
    return replace(
        beside,
        name=f"attention.kv_latent.context_{what}",
        kind=kind,
        dtype="bfloat16",
        out_dtype="bfloat16",
        recompute=False,
        sizes=(("columns", columns), ("ranks", ranks), ("rows", beside["rows"])),
    )
