"""The operators one GPU runs for a layer: a recorded trace and a workload in, operators out.

What a recording does not vary is applied to its sizes here, each proven equal to a recording in the
tests: heads split over GPUs that share a request, several tokens of a sequence in one decode step,
cached tokens before a prefill chunk, the intermediate size of experts split over GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reference_model.trace import Operator, OperatorTrace

# Size that runs over heads, of each operator that works on some heads only.
_HEAD_SIZES = {
    "attention.q_b_proj": "n",
    "attention.rope_q": "heads",
    "attention.kv_b_proj": "n",
    "attention.k_nope.copy": "columns",
    "attention.k_rope.broadcast": "heads",
    "attention.core": "heads",
    "attention.key_up": "batch",
    "attention.value_up": "batch",
    "attention.o_proj.quantize_input": "columns",
    "attention.o_proj": "k",
}
# Operators between the gather of a request's tokens and the scatter of its attention output.
_FIRST_SPLIT, _LAST_SPLIT = "attention.qkv_a_proj.quantize_input", "attention.o_proj"

# Size that runs over the intermediate dimension of an expert.
_INTERMEDIATE_SIZES = {
    "experts.gate_up_proj": "n",
    "experts.swiglu": "columns",
    "experts.down_proj": "k",
}
# Prefill operators that rebuild keys and values, of cached tokens too.
_KEY_VALUE_ROWS = {
    "attention.kv_b_proj.quantize_input": "rows",
    "attention.kv_b_proj": "m",
    "attention.k_nope.copy": "rows",
    "attention.k_rope.broadcast": "rows",
}


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """What one GPU works on in one micro-batch."""

    tokens: int
    sequences: int
    context: int
    """Tokens that the last token of a sequence attends to, itself included."""
    expert_rows: int
    """Rows of the local experts together."""
    received_rows: int
    """Tokens that normal dispatch delivers."""
    active_experts: int
    """Local experts that have rows."""
    group_sequences: int | None = None
    """Sequences of the GPUs that share heads, together; without it all have `sequences`."""

    @property
    def query_length(self) -> int:
        """New tokens of one sequence."""
        return self.tokens // self.sequences


def layer_operators(
    trace: OperatorTrace,
    kind: str,
    load: BatchLoad,
    *,
    attention_tp: int,
    expert_tp: int,
) -> list[Operator]:
    """Operators of one layer in issue order at the sizes of `load`."""

    def recorded(tokens: int, sequences: int) -> list[Operator]:
        # Prefill is recorded over whole prompts: query and context are one variable there.
        context = load.context if trace.job == "decode" else load.query_length
        return trace.operators(
            kind,
            "forward",
            tokens=tokens,
            context=context,
            sequences=sequences,
            expert_rows=load.expert_rows,
            received_rows=load.received_rows,
            local_experts=load.active_experts,
        )

    operators = recorded(load.tokens, load.sequences)
    if attention_tp > 1:
        sequences = load.group_sequences or load.sequences * attention_tp
        together = recorded(load.tokens * sequences // load.sequences, sequences)
        operators = split_heads(operators, together, attention_tp)
    if expert_tp > 1:
        operators = [_divided(op, _INTERMEDIATE_SIZES, expert_tp) for op in operators]
    if trace.job == "decode" and load.query_length > 1:
        operators = [_several_queries(op, load.query_length) for op in operators]
    if trace.job == "prefill" and load.context > load.query_length:
        operators = [_with_cache(op, load) for op in operators]
    return operators


def split_heads(
    own: Sequence[Operator], together: Sequence[Operator], ranks: int
) -> list[Operator]:
    """Attention of `ranks` GPUs that share the heads of their requests and split the tokens
    elsewhere (Report, section 3.4: TP4 with sequence parallelism).

    Args:
        own: operators at the tokens of one GPU.
        together: the same at the tokens of all `ranks` GPUs.
    """
    names = [op.name for op in own]
    if _FIRST_SPLIT not in names:
        return list(own)
    if "attention.q_b_proj" not in names:
        raise ValueError(
            "attention_tp: the model projects queries without a latent; allowed: attention_tp 1"
        )
    first, last = names.index(_FIRST_SPLIT), names.index(_LAST_SPLIT)
    hidden = dict(own[first].sizes)["columns"]
    rows = dict(together[first].sizes)["rows"]
    split = [_divided(op, _HEAD_SIZES, ranks) for op in together[first : last + 1]]
    collective = replace(
        own[first],
        kind="copy",
        dtype="bfloat16",
        out_dtype="bfloat16",
        sizes=(("columns", hidden), ("rows", rows)),
    )
    return [
        *own[:first],
        replace(collective, name="attention.gather", segment="gather"),
        *split,
        replace(collective, name="attention.scatter", segment="scatter"),
        *own[last + 1 :],
    ]


def _divided(operator: Operator, sizes: Mapping[str, str], ranks: int) -> Operator:
    """The operator with the size named for it divided by `ranks`."""
    name = sizes.get(operator.name)
    if name is None:
        return operator
    if operator[name] % ranks:
        raise ValueError(
            f"{operator.name}: {ranks} GPUs do not divide its {name} = {operator[name]}"
        )
    return _with_sizes(operator, {name: operator[name] // ranks})


def _several_queries(operator: Operator, queries: int) -> Operator:
    if operator.kind == "mla_decode":
        sizes = {"sequences": operator["sequences"] // queries, "query_length": queries}
        return _with_sizes(operator, sizes)
    if operator.kind == "rope":
        return _with_sizes(operator, {"positions": queries})
    return operator


def _with_cache(operator: Operator, load: BatchLoad) -> Operator:
    if operator.kind == "attention_forward":
        return _with_sizes(operator, {"kv_length": load.context})
    name = _KEY_VALUE_ROWS.get(operator.name)
    if name is None:
        return operator
    # Rows grow from the chunk's tokens to those of its whole context.
    return _with_sizes(operator, {name: operator[name] * load.context // load.query_length})


def _with_sizes(operator: Operator, sizes: Mapping[str, int]) -> Operator:
    return replace(
        operator, sizes=tuple((name, sizes.get(name, value)) for name, value in operator.sizes)
    )
