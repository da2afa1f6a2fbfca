"""The floating-point operations and bytes of attention, by kernel family. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reference_model.kind import FLOAT32, INT32, Kind, plain, tiled

if TYPE_CHECKING:
    from reference_model.kinds import Operator


def attention_flops(o: Operator, dimensions: int) -> int:
    """2 x dimensions FLOPs for each visible (query, key) pair of each head.

    Causal with the queries at the end of the keys, so q (kv - q/2) pairs: half the square where
    both lengths agree, as FlashAttention counts it."""
    query, kv = o["query_length"], o["kv_length"]
    pairs_twice = query * (2 * kv - query)
    return o["sequences"] * o["heads"] * pairs_twice * dimensions


def _least(a: int, b: int) -> int:
    """The smaller one, of arrays too: a cost model asks for many operators at once."""
    return (a + b - abs(a - b)) // 2


def selected_pairs(o: Any) -> Any:
    """(query, key) pairs of one sequence and head where each query reads the `top_k` best of the
    keys that it may see; the queries are the last of the keys. `o` has the sizes, arrays too."""
    query, top_k = o["query_length"], o["top_k"]
    before = o["kv_length"] - query
    # Queries that see no more than top_k keys read all of them.
    few = _least(query, (top_k - before + abs(top_k - before)) // 2)
    return few * before + few * (few + 1) // 2 + (query - few) * top_k


MASKED = {"attention_masked_forward": 1, "attention_masked_backward": 2}
"""{kind: products of the size of the forward's that its mathematics needs}"""


def _selection(o: Operator) -> int:
    """Bytes of the positions that each query selects."""
    return o["sequences"] * o["query_length"] * o["top_k"] * INT32


def _attention_operands(o: Operator) -> int:
    """Bytes of Q, K and V."""
    queries = o["sequences"] * o["query_length"] * o["heads"]
    keys = o["sequences"] * o["kv_length"] * o["heads"]
    return plain(o.dtype, queries, o["qk_dim"]) + plain(o.dtype, keys, o["qk_dim"] + o["v_dim"])


def _softmax_rows(o: Operator) -> int:
    """Bytes of one FP32 number for each query and head (log-sum-exp, or sum of O x dO)."""
    return o["sequences"] * o["heads"] * o["query_length"] * FLOAT32


def _query_gradient(o: Operator) -> int:
    """Bytes of the FP32 gradient of Q, into which attention backward adds block by block."""
    return o["sequences"] * o["query_length"] * o["heads"] * o["qk_dim"] * FLOAT32


_ATTENTION_SIZES = ("sequences", "query_length", "kv_length", "heads", "qk_dim", "v_dim")


def _attention_written(o: Operator) -> int:
    return plain(
        o.out_dtype, o["sequences"], o["query_length"], o["heads"], o["v_dim"]
    ) + _softmax_rows(o)


def _latent_operands(o: Operator, keys: int) -> int:
    """Bytes of the queries of all heads and of so many latent keys of each sequence."""
    vectors = o["sequences"] * (o["query_length"] * o["heads"] + keys)
    return plain(o.dtype, vectors, o["latent_dim"] + o["rope_dim"])


def _latent_written(o: Operator) -> int:
    values = o["sequences"], o["query_length"], o["heads"], o["latent_dim"]
    return plain(o.out_dtype, *values) + _softmax_rows(o)


def _attention_backward_flops(o: Operator) -> int:
    return attention_flops(o, 3 * o["qk_dim"] + 2 * o["v_dim"])


def _attention_backward_read(o: Operator) -> int:
    return (
        _attention_operands(o)
        + plain(o.dtype, o["sequences"], o["query_length"], o["heads"], o["v_dim"])
        + 2 * _softmax_rows(o)
        + _query_gradient(o)
    )


def _attention_backward_written(o: Operator) -> int:
    keys = o["sequences"], o["kv_length"], o["heads"], o["qk_dim"] + o["v_dim"]
    return _query_gradient(o) + plain(o.out_dtype, *keys)


ATTENTION_KINDS: dict[str, Kind] = {
    # -- attention core ----------------------------------------------------------------------------
    "attention_forward": Kind(
        sizes=_ATTENTION_SIZES,
        flops=lambda o: attention_flops(o, o["qk_dim"] + o["v_dim"]),
        bytes_read=_attention_operands,
        bytes_written=_attention_written,
    ),
    # row sums of O x dO, and the FP32 accumulator of dQ set to zero
    "attention_backward_preprocess": Kind(
        sizes=("sequences", "query_length", "heads", "qk_dim", "v_dim"),
        bytes_read=lambda o: (
            2 * plain(o.dtype, o["sequences"], o["query_length"], o["heads"], o["v_dim"])
        ),
        bytes_written=lambda o: _softmax_rows(o) + _query_gradient(o),
    ),
    # five products: S = Q K^T again, dP = dO V^T, dV = P^T dO, dQ = dS K, dK = dS^T Q
    "attention_backward": Kind(
        sizes=_ATTENTION_SIZES,
        flops=_attention_backward_flops,
        bytes_read=_attention_backward_read,
        bytes_written=_attention_backward_written,
    ),
    # absorbed form: every head reads the same latent key and value
    "mla_decode": Kind(
        sizes=("sequences", "query_length", "kv_length", "heads", "latent_dim", "rope_dim"),
        flops=lambda o: (
            2
            * o["sequences"]
            * o["query_length"]
            * o["kv_length"]
            * o["heads"]
            * (2 * o["latent_dim"] + o["rope_dim"])
        ),
        bytes_read=lambda o: _latent_operands(o, o["kv_length"]),
        bytes_written=_latent_written,
    ),
    # absorbed form over a whole prompt: causal, queries at the end of the keys
    "mla_prefill": Kind(
        sizes=("sequences", "query_length", "kv_length", "heads", "latent_dim", "rope_dim"),
        flops=lambda o: attention_flops(o, 2 * o["latent_dim"] + o["rope_dim"]),
        bytes_read=lambda o: _latent_operands(o, o["kv_length"]),
        bytes_written=_latent_written,
    ),
    # -- sparse attention: an indexer scores all keys, each query reads the best of them -----------
    # sum over heads of weight x relu(q k^T), of every key that a query may see; FP32 weights
    "index_scores": Kind(
        sizes=("sequences", "query_length", "kv_length", "heads", "dim"),
        flops=lambda o: (
            o["sequences"]
            * o["query_length"]
            * (2 * o["kv_length"] - o["query_length"] + 1)
            * o["heads"]
            * o["dim"]
        ),
        bytes_read=lambda o: (
            tiled(o.dtype, o["sequences"] * o["query_length"] * o["heads"], o["dim"])
            + tiled(o.dtype, o["sequences"] * o["kv_length"], o["dim"])
            + o["sequences"] * o["query_length"] * o["heads"] * FLOAT32
        ),
        bytes_written=lambda o: o["sequences"] * o["query_length"] * o["kv_length"] * FLOAT32,
    ),
    # positions of the top_k largest FP32 scores of each row
    "index_topk": Kind(
        sizes=("rows", "columns", "top_k"),
        bytes_read=lambda o: o["rows"] * o["columns"] * FLOAT32,
        bytes_written=lambda o: o["rows"] * o["top_k"] * INT32,
    ),
    # absorbed form over the selected keys of each query, each read from memory once
    "sparse_mla": Kind(
        sizes=(
            "sequences",
            "query_length",
            "kv_length",
            "heads",
            "latent_dim",
            "rope_dim",
            "top_k",
        ),
        flops=lambda o: (
            2
            * o["sequences"]
            * o["heads"]
            * selected_pairs(o)
            * (2 * o["latent_dim"] + o["rope_dim"])
        ),
        bytes_read=lambda o: (
            _latent_operands(o, _least(o["query_length"] * o["top_k"], o["kv_length"]))
            + _selection(o)
        ),
        bytes_written=_latent_written,
    ),
    # training: the dense products of attention_forward, keys that are not selected masked out
    "attention_masked_forward": Kind(
        sizes=(*_ATTENTION_SIZES, "top_k"),
        flops=lambda o: attention_flops(o, o["qk_dim"] + o["v_dim"]),
        bytes_read=lambda o: _attention_operands(o) + _selection(o),
        bytes_written=_attention_written,
    ),
    "attention_masked_backward": Kind(
        sizes=(*_ATTENTION_SIZES, "top_k"),
        flops=_attention_backward_flops,
        bytes_read=lambda o: _attention_backward_read(o) + _selection(o),
        bytes_written=_attention_backward_written,
    ),
}
