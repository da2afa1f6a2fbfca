"""The operators that one GPU runs for each layer of a serving iteration.

What a recording does not vary is applied to its sizes here, each proven equal to a recording in the
tests: heads split over GPUs that share a request, several tokens of a sequence in one decode step,
cached tokens before a prefill chunk, the intermediate size of feed-forwards split over GPUs.

What is split over GPUs (TensorParallel) runs on the tokens of all of them, as engines do it:

    attention   gather tokens, own heads, o_proj gives partial sums, scatter them
    dense       gather tokens, own columns of gate and up, own rows of down: partial sums, scatter
    experts     the same between dispatch and combine, which become a gather and a scatter; a shared
                expert that is split lies between them too, and its partial sums are added to theirs
    embedding   look up all tokens in the own rows of the table: partial sums, scatter
    head        gather tokens, own columns of the logits, gather those, sample all tokens everywhere

A gather and a scatter are an engine's all-reduce in two halves, so that what is not split (norms,
gate) runs on a GPU's own tokens (sequence parallelism). Logits are gathered as vLLM and SGLang do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reference_model.trace import Operator, OperatorTrace
from simulator.scenario.serving import TensorParallel
from simulator.workload.load import Load

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
# First product (a cast of its input comes before it) and last one between a gather of tokens and a
# scatter of partial sums.
_ATTENTION = ("attention.qkv_a_proj", "attention.o_proj")
_DENSE = ("mlp.gate_up_proj", "mlp.down_proj")

# Size that runs over the intermediate dimension, of each operator of a feed-forward.
_INTERMEDIATE_SIZES = {
    f"{part}.{operator}": size
    for part in ("experts", "shared_experts", "mlp")
    for operator, size in (("gate_up_proj", "n"), ("swiglu", "columns"), ("down_proj", "k"))
}
# Operators of sparse attention that read the cache of a sequence for its queries.
_SPARSE = ("index_scores", "sparse_mla")
# Prefill operators that rebuild keys and values, of cached tokens too.
_KEY_VALUE_ROWS = {
    "attention.kv_b_proj.quantize_input": "rows",
    "attention.kv_b_proj": "m",
    "attention.k_nope.copy": "rows",
    "attention.k_rope.broadcast": "rows",
}


def layer_operators(
    trace: OperatorTrace,
    kind: str,
    load: Load,
    split: TensorParallel,
) -> list[Operator]:
    """Operators of one layer in issue order at the sizes of `load`.

    Raises ValueError for a size that its GPUs do not divide.
    """

    def recorded(tokens: int, sequences: int) -> list[Operator]:
        # Prefill is recorded over whole prompts: query and context are one variable there.
        context = load.context if trace.job == "decode" else load.query_length
        workload = load.workload._replace(tokens=tokens, context=context, sequences=sequences)
        return trace.operators(kind, "forward", workload)

    operators = recorded(load.tokens, load.sequences)
    if split.groups:
        group = recorded(load.group_tokens, load.group_sequences)
        everywhere = recorded(load.received_rows, load.sequences) if split.experts > 1 else group
        operators = _split(operators, group, everywhere, split)
    if trace.job == "decode" and load.query_length > 1:
        operators = [_several_queries(op, load.query_length) for op in operators]
    if trace.job == "prefill" and load.context > load.query_length:
        operators = [_with_cache(op, load) for op in operators]
    return operators


def _split(
    own: Sequence[Operator],
    group: Sequence[Operator],
    everywhere: Sequence[Operator],
    split: TensorParallel,
) -> list[Operator]:
    """A layer's operators, each part split over its GPUs.

    Args:
        own: at the tokens of one GPU.
        group: the same at those of the GPUs that share heads.
        everywhere: the same at those of the GPUs that share experts.
    """
    operators = list(own)
    for place, op in enumerate(own):
        if op.name.startswith("experts."):
            operators[place] = _divided(op, _INTERMEDIATE_SIZES, split.experts)
        elif op.name.startswith("shared_experts.") and split.shared_expert > 1:
            operators[place] = _divided(everywhere[place], _INTERMEDIATE_SIZES, split.shared_expert)
    if split.attention > 1:
        operators = split_heads(operators, group, split.attention)
    if split.dense > 1:
        together = group if split.dense == split.attention else everywhere
        operators = _shared_out(
            operators, together, "mlp", _DENSE, _INTERMEDIATE_SIZES, split.dense
        )
    if split.vocabulary > 1:
        operators = _split_vocabulary(operators, group, split.vocabulary)
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
    split = _shared_out(own, together, "attention", _ATTENTION, _HEAD_SIZES, ranks)
    by_name = {op.name: op for op in split}
    if "attention.qkv_a_proj" not in by_name or "attention.q_b_proj" in by_name:
        return split
    # Without a query latent this product makes the queries too, which are split, beside what the
    # cache holds, which is not.
    joined, cached = by_name["attention.qkv_a_proj"], by_name["attention.append_cache"]["columns"]
    own_queries = _with_sizes(joined, {"n": (joined["n"] - cached) // ranks + cached})
    return [own_queries if op is joined else op for op in split]


def _shared_out(
    own: Sequence[Operator],
    together: Sequence[Operator],
    name: str,
    span: tuple[str, str],
    sizes: Mapping[str, str],
    ranks: int,
) -> list[Operator]:
    """The operators with those of `span`, first and last included, at the tokens of all `ranks`
    GPUs and with a part of `sizes` each, between a gather before and a scatter after; as they are
    where the layer has no such span."""
    within = [place for place, op in enumerate(own) if op.name.startswith(span)]
    if not within:
        return list(own)
    first, last = within[0], within[-1]
    start = next(place for place, op in enumerate(together) if op.name == own[first].name)
    inside = together[start : start + last + 1 - first]
    product = next(op for op in inside if op.name == span[0])
    columns, rows = product["k"], product["m"]
    return [
        *own[:first],
        _collective(own[first], f"{name}.gather", "gather", columns=columns, rows=rows),
        *(_divided(op, sizes, ranks) for op in inside),
        _collective(own[last], f"{name}.scatter", "scatter", columns=columns, rows=rows),
        *own[last + 1 :],
    ]


def _split_vocabulary(
    own: Sequence[Operator], together: Sequence[Operator], ranks: int
) -> list[Operator]:
    """Embedding and head with a part of the vocabulary each; engines pad it to whole parts."""
    at_all = {op.name: op for op in together}
    split: list[Operator] = []
    for op in own:
        if op.name == "embedding":
            looked_up = at_all[op.name]
            columns, rows = looked_up["columns"], looked_up["rows"]
            split += [
                looked_up,
                _collective(op, "embedding.scatter", "scatter", columns=columns, rows=rows),
            ]
        elif op.name == "head.proj":
            product = at_all[op.name]
            rows, vocabulary = product["m"], product["n"]
            split += [
                _collective(op, "head.gather", "gather", columns=product["k"], rows=rows),
                _with_sizes(product, {"n": -(-vocabulary // ranks)}),
                _collective(op, "head.gather_logits", "gather", columns=vocabulary, rows=rows),
            ]
        else:
            split.append(at_all[op.name] if op.name == "head.sample" else op)
    return split


def collective_ranks(operator: Operator, split: TensorParallel) -> int:
    """GPUs among which a collective that tensor parallelism adds gathers or scatters."""
    part = operator.name.partition(".")[0]
    return {"attention": split.attention, "mlp": split.dense}.get(part, split.vocabulary)


def _collective(beside: Operator, name: str, segment: str, *, columns: int, rows: int) -> Operator:
    """All-gather or reduce-scatter of a BF16 matrix [rows, columns], listed beside an operator."""
    return replace(
        beside,
        name=name,
        kind="copy",
        segment=segment,
        dtype="bfloat16",
        out_dtype="bfloat16",
        sizes=(("columns", columns), ("rows", rows)),
    )


def _divided(operator: Operator, sizes: Mapping[str, str], ranks: int) -> Operator:
    """The operator with the size named for it divided by `ranks`."""
    name = sizes.get(operator.name)
    if name is None:
        return operator
    if operator[name] % ranks:
        raise ValueError(
            f"{operator.name}: {ranks} GPUs of tensor parallelism do not divide its {name} = "
            f"{operator[name]}; allowed: a divisor of it"
        )
    return _with_sizes(operator, {name: operator[name] // ranks})


def _several_queries(operator: Operator, queries: int) -> Operator:
    if operator.kind in ("mla_decode", *_SPARSE):
        sizes = {"sequences": operator["sequences"] // queries, "query_length": queries}
        return _with_sizes(operator, sizes)
    if operator.kind == "rope":
        return _with_sizes(operator, {"positions": queries})
    return operator


def _with_cache(operator: Operator, load: Load) -> Operator:
    if operator.kind in ("attention_forward", *_SPARSE):
        return _with_sizes(operator, {"kv_length": load.context})
    if operator.kind == "index_topk":
        return _with_sizes(operator, {"columns": load.context})
    name = _KEY_VALUE_ROWS.get(operator.name)
    if name is None:
        return operator
    # Rows grow from the chunk's tokens to those of its whole context.
    return _with_sizes(operator, {name: operator[name] * load.context // load.query_length})


def _with_sizes(operator: Operator, sizes: Mapping[str, int]) -> Operator:
    return replace(
        operator, sizes=tuple((name, sizes.get(name, value)) for name, value in operator.sizes)
    )
