"""The operators to time, chosen from a model's traces and a grid of sizes.

The operators of every shipped trace of the model at its published workloads come first; then, for
each kind, a grid around their sizes, from which a cost model interpolates. GEMM shapes are those
of the model's weights, forward, input gradient and weight gradient.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from reference_model.config import ModelConfig
from reference_model.measure import TimingRequest
from reference_model.trace import TRACE_FOLDER, WHOLE, Operator, OperatorTrace, Workload, load_trace

ROWS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Rows (tokens) of the dense grid."""

TOKEN_ROWS = (128, 512, 1024, 2048, 4096, 8192, 16384)
"""Rows of element-wise kernels over tokens."""

EXPERT_ROWS = (8192, 16384, 24576, 28672, 32768, 36864, 40960, 65536)
"""Rows of element-wise kernels over the rows of experts."""

_NOT_MEASURED = frozenset(
    {"dispatch", "combine", "attention_masked_forward", "attention_masked_backward"}
)
"""Kinds that need several GPUs, or have no kernel of their own."""

# Workloads at which the traces are timed: a training micro-batch of EP64 (Report, section 3.2);
# prefill of EP32 with 16K tokens per GPU in two micro-batches of 4K prompts, and decode of EP128
# with 128 requests per GPU in two micro-batches of 4K context (profile-data's README). Tokens
# received are the expected distinct (token, rank) pairs of a gate that keeps 4 of 8 groups.
WORKLOADS: Mapping[str, Workload] = {
    "train": Workload(
        tokens=4096,
        context=4096,
        sequences=1,
        expert_rows=32768,
        received_rows=30592,
        local_experts=4,
    ),
    "prefill": Workload(
        tokens=8192,
        context=4096,
        sequences=2,
        expert_rows=65536,
        received_rows=57344,
        local_experts=9,
    ),
    "decode": Workload(
        tokens=64,
        context=4096,
        sequences=64,
        expert_rows=512,
        received_rows=512,
        local_experts=2,
    ),
}


ALL_SMS = 132
"""Multiprocessors of a Hopper SXM GPU."""

TRAINING_SMS = 112
"""What training leaves to compute kernels, 20 going to all-to-all (Report, section 3.2.1)."""

PREFILL_SMS = 108
"""What prefill leaves, 24 going to all-to-all (profile-data's overlap figures)."""

_BACKEND_KINDS = frozenset({"gemm", "grouped_gemm", "grouped_gemm_weight_grad"})
"""Kinds that differ between the backends "library" and "triton"."""


def requests(config: ModelConfig, *, model: str) -> list[TimingRequest]:
    """Everything to measure, the traces first and what matters least last."""
    traced = trace_operators(model)
    dense, grouped_, attention = (
        gemm_operators(config),
        grouped_operators(config),
        attention_operators(config),
    )
    found = [_request(o, "library", ALL_SMS) for o in traced]
    found += [_request(o, "library", TRAINING_SMS) for o in traced]
    found += [_request(o, "triton", ALL_SMS) for o in traced if _two_backends(o)]
    sparse = sparse_operators(config)
    for part in (
        copy_operators(),
        update_grid(config),
        attention,
        sparse,
        dense,
        grouped_,
        elementwise_operators(traced),
    ):
        found += [_request(o, "library", ALL_SMS) for o in part]
    found += [_request(o, "triton", ALL_SMS) for o in grouped_ + dense if _two_backends(o)]
    shared = [o for o in dense if max(_rows(o), 1024) == _rows(o)]
    shared += [o for o in grouped_ if o.kind != "masked_grouped_gemm" and o["groups"] in (4, 8, 9)]
    shared_fp8 = [o for o in shared if o.dtype == "fp8_e4m3"]
    prefill = [o for o in attention if o.kind.startswith("attention")]
    found += [_request(o, "library", TRAINING_SMS) for o in shared + prefill]
    found += [_request(o, "library", PREFILL_SMS) for o in shared_fp8]
    return list(dict.fromkeys(found))


def narrowed(
    requests: Sequence[TimingRequest], *, kinds: Sequence[str], kernels: str | None
) -> list[TimingRequest]:
    """Those of some kinds (all if none is named) and on one backend (any if None)."""
    for name, chosen, allowed in (
        ("--kinds", kinds, {request.operator.kind for request in requests}),
        ("--kernels", [kernels] if kernels else [], {request.kernels for request in requests}),
    ):
        for value in chosen:
            if value not in allowed:
                raise ValueError(f"{name} {value}: allowed {', '.join(sorted(allowed))}")
    return [
        request
        for request in requests
        if (not kinds or request.operator.kind in kinds) and kernels in (None, request.kernels)
    ]


def sustained_requests(config: ModelConfig) -> list[TimingRequest]:
    """The main kernels, which draw the most power, at their training sizes."""
    tokens, heads = WORKLOADS["train"].tokens, config.num_attention_heads
    sizes = {
        "sequences": 1,
        "query_length": tokens,
        "kv_length": tokens,
        "heads": heads,
        "qk_dim": config.qk_head_dim,
        "v_dim": config.v_head_dim,
    }
    rows, groups = WORKLOADS["train"].expert_rows, WORKLOADS["train"].local_experts
    hidden, intermediate = config.hidden_size, config.moe_intermediate_size
    decode = {
        "sequences": 64,
        "query_length": 1,
        "kv_length": 4096,
        "heads": heads,
        "latent_dim": config.kv_lora_rank,
        "rope_dim": config.qk_rope_head_dim,
    }
    operators = [
        gemm_operator(tokens, 2 * intermediate, hidden),
        gemm_operator(tokens, hidden, heads * config.v_head_dim),
        weight_gradient(hidden, heads * config.v_head_dim, tokens),
        grouped("grouped_gemm", rows, 2 * intermediate, hidden, groups),
        grouped("grouped_gemm", rows, hidden, intermediate, groups),
        grouped_weight_gradient(rows, 2 * intermediate, hidden, groups),
        sized_operator("attention_forward", "bfloat16", "bfloat16", sizes),
        sized_operator("attention_backward", "bfloat16", "bfloat16", sizes),
        sized_operator("mla_decode", "bfloat16", "bfloat16", decode),
        gemm_operator(tokens, config.vocab_size, hidden, "bfloat16", "bfloat16"),
        sized_operator("copy", "bfloat16", "bfloat16", {"rows": 4 * tokens, "columns": 4 * hidden}),
    ]
    return [_request(o, "library", ALL_SMS) for o in operators]


def _two_backends(o: Operator) -> bool:
    return o.kind in _BACKEND_KINDS and o.dtype == "fp8_e4m3"


def _rows(o: Operator) -> int:
    """Rows of a GEMM that come from tokens."""
    return o["k"] if o.accumulate else o["m"]


def _request(o: Operator, kernels: str, sms: int) -> TimingRequest:
    # A masked GEMM of the library computes the empty rows too: no measure of that kind.
    if o.kind == "masked_grouped_gemm":
        kernels = "triton"
    # The driver partitions by eights: of 108, only persistent GEMMs can be asked.
    return TimingRequest(o, kernels, sms, partition=sms == TRAINING_SMS)


def trace_operators(model: str) -> list[Operator]:
    """The distinct operators of a model's shipped traces, at their workloads.

    Layers are whole on a GPU there, and recompute what is published."""
    operators: list[Operator] = []
    for path in sorted(Path(TRACE_FOLDER).glob(f"{model}.*.jsonl")):
        trace = load_trace(path)
        whole = trace.split == WHOLE and trace.recompute == "published"
        if trace.job in WORKLOADS and whole:
            operators += _at_workload(trace, WORKLOADS[trace.job])
    return distinct(o for o in operators if o.kind not in _NOT_MEASURED)


def _at_workload(trace: OperatorTrace, workload: Workload) -> Iterator[Operator]:
    for layer_kind, phase in trace.templates:
        yield from trace.operators(layer_kind, phase, workload)


def distinct(operators: Iterable[Operator]) -> list[Operator]:
    """The first of all operators that are the same kernel at the same sizes."""
    seen: dict[object, Operator] = {}
    for o in operators:
        seen.setdefault((o.kind, o.sizes, o.dtype, o.out_dtype, o.accumulate), o)
    return list(seen.values())


def weight_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(out, in) features of the FP8 weights of a token: attention, dense and shared experts."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv_a = config.kv_lora_rank + config.qk_rope_head_dim
    shapes = [
        (kv_a, hidden),
        (heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank),
        (hidden, heads * config.v_head_dim),
        (2 * config.intermediate_size, hidden),
        (hidden, config.intermediate_size),
        (2 * config.moe_intermediate_size * config.n_shared_experts, hidden),
        (hidden, config.moe_intermediate_size * config.n_shared_experts),
        (hidden, 2 * hidden),
    ]
    if config.q_lora_rank is None:
        return [*shapes, (heads * config.qk_head_dim, hidden)]
    # Query and key-value down-projections, apart (training) and as one GEMM (inference).
    return [
        *shapes,
        (config.q_lora_rank, hidden),
        (config.q_lora_rank + kv_a, hidden),
        (heads * config.qk_head_dim, config.q_lora_rank),
    ]


def gemm_operators(config: ModelConfig, *, rows: Sequence[int] = ROWS) -> list[Operator]:
    """Dense GEMMs: every weight's forward, input gradient and weight gradient at each row count."""
    operators = []
    for out, into in weight_shapes(config):
        for m in rows:
            operators.append(gemm_operator(m, out, into))
            operators.append(gemm_operator(m, into, out))
            if m >= 512:
                operators.append(weight_gradient(out, into, m))
    for m in rows:
        operators += [
            gemm_operator(m, config.n_routed_experts, config.hidden_size, "bfloat16", "float32"),
            gemm_operator(m, config.hidden_size, config.n_routed_experts, "bfloat16", "bfloat16"),
            gemm_operator(m, config.vocab_size, config.hidden_size, "bfloat16", "bfloat16"),
        ]
    return distinct(operators)


def grouped_operators(config: ModelConfig) -> list[Operator]:
    """Grouped GEMMs: contiguous, masked and weight gradients, of the routed experts."""
    hidden, intermediate = config.hidden_size, config.moe_intermediate_size
    forward = [(2 * intermediate, hidden), (hidden, intermediate)]
    backward = [(intermediate, hidden), (hidden, 2 * intermediate)]
    operators = []
    for groups in (1, 2, 4, 8, 9, 16, 32):
        for each in (128, 256, 512, 1024, 2048, 4096, 7168, 8192, 9216, 16384):
            if groups * each > 131_072:
                continue
            shapes = forward + backward if groups in (4, 8) else forward
            operators += [grouped("grouped_gemm", groups * each, n, k, groups) for n, k in shapes]
            if groups in (2, 4, 8) and each >= 512:
                operators += [
                    grouped_weight_gradient(groups * each, n, k, groups) for n, k in forward
                ]
        for each in (1, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512):
            operators += [
                grouped("masked_grouped_gemm", groups * each, n, k, groups) for n, k in forward
            ]
    return operators


def attention_operators(config: ModelConfig) -> list[Operator]:
    """Attention cores: prefill and training by length and sequences, backward, absorbed decode."""
    heads, qk_dim, v_dim = config.num_attention_heads, config.qk_head_dim, config.v_head_dim
    operators = []
    for sequences, length in (
        *((1, length) for length in (512, 1024, 2048, 3072, 4096, 6144, 8192, 16384)),
        *((n, length) for n in (2, 4, 8) for length in (1024, 2048, 4096)),
        (32, 128), (16, 256), (8, 512),
    ):  # fmt: skip
        sizes = {
            "sequences": sequences,
            "query_length": length,
            "kv_length": length,
            "heads": heads,
            "qk_dim": qk_dim,
            "v_dim": v_dim,
        }
        operators.append(sized_operator("attention_forward", "bfloat16", "bfloat16", sizes))
        if sequences * length <= 16384:
            operators.append(sized_operator("attention_backward", "bfloat16", "bfloat16", sizes))
    for sequences in (1, 4, 16, 32, 64, 96, 128, 192, 256):
        for length in (512, 1024, 2048, 4096, 8192, 16384, 32768, 131_072):
            for query_length in (1, 2):
                if sequences * length > 2_097_152:
                    continue
                sizes = {
                    "sequences": sequences,
                    "query_length": query_length,
                    "kv_length": length,
                    "heads": heads,
                    "latent_dim": config.kv_lora_rank,
                    "rope_dim": config.qk_rope_head_dim,
                }
                operators.append(sized_operator("mla_decode", "bfloat16", "bfloat16", sizes))
    for batch in (16, 32, 64, 128, 256):
        for n, k in ((config.kv_lora_rank, config.qk_nope_head_dim),
                     (config.v_head_dim, config.kv_lora_rank)):  # fmt: skip
            sizes = {"batch": heads, "m": batch, "n": n, "k": k}
            operators.append(sized_operator("batched_gemm", "bfloat16", "bfloat16", sizes))
    return operators


def sparse_operators(config: ModelConfig) -> list[Operator]:
    """Index scores, selection and core of sparse attention: decode by sequences and context,
    prefill by tokens and context, and the norm of the indexer's keys; none without an indexer."""
    if config.indexer is None:
        return []
    top_k, index_heads, dim, _ = config.indexer
    workloads = [
        (sequences, queries, context)
        for context in (4096, 32768, 131_072)
        for sequences in (1, 16, 64, 128)
        for queries in (1, 2)
    ]
    workloads += [(1, 4096, 4096), (2, 4096, 4096), (1, 8192, 8192), (1, 16384, 16384)]
    workloads += [(1, 8192, 32768), (1, 8192, 131_072)]
    operators = []
    for sequences, queries, context in workloads:
        lengths = {"sequences": sequences, "query_length": queries, "kv_length": context}
        scored = lengths | {"heads": index_heads, "dim": dim}
        core = lengths | {
            "heads": config.num_attention_heads,
            "latent_dim": config.kv_lora_rank,
            "rope_dim": config.qk_rope_head_dim,
            "top_k": top_k,
        }
        rows = {"rows": sequences * queries, "columns": context, "top_k": top_k}
        operators += [
            sized_operator("index_scores", "fp8_e4m3", "float32", scored),
            sized_operator("index_topk", "float32", "int32", rows),
            sized_operator("sparse_mla", "bfloat16", "bfloat16", core),
        ]
    for rows_of_keys in (16, 64, *TOKEN_ROWS):
        sizes = {"rows": rows_of_keys, "columns": dim}
        operators.append(sized_operator("layernorm", "bfloat16", "bfloat16", sizes))
    return distinct(operators)


def elementwise_operators(operators: Sequence[Operator]) -> list[Operator]:
    """Kernels without matrix products, at other row counts than the traces': around each one."""
    grid = []
    for o in operators:
        if o.flops or o.kind in _NOT_MEASURED or o.kind == "transpose":
            continue
        sizes = dict(o.sizes)
        counted = "rows" if "rows" in sizes else "tokens" if "tokens" in sizes else None
        if counted is None or o.kind == "expert_mapping":
            continue
        expert = sizes[counted] > max(w.tokens for w in WORKLOADS.values())
        for rows in EXPERT_ROWS if expert else TOKEN_ROWS:
            changed = sizes | {counted: rows}
            if "positions" in sizes:
                changed["positions"] = rows
            if counted == "rows" and "tokens" in sizes:
                # Rows and the tokens that they came from grow together.
                changed["tokens"] = rows * sizes["tokens"] // sizes["rows"]
            if o.bytes_read * rows // sizes[counted] > 2**33:
                continue
            grid.append(
                sized_operator(o.kind, o.dtype, o.out_dtype, changed, accumulate=o.accumulate)
            )
    return distinct(grid)


def copy_operators() -> list[Operator]:
    """Device-to-device copies from 4 KiB to 4 GiB: the floor of a kernel, and the bandwidth."""
    return [
        sized_operator("copy", "bfloat16", "bfloat16", {"rows": 2**power // 4096, "columns": 2048})
        for power in range(12, 33)
    ]


def update_grid(config: ModelConfig) -> list[Operator]:
    """What ends a step: norm and update of a million to three billion values, and working copies of
    every weight of a layer, of 1, 4 and 8 of its experts, and of embedding and head."""
    hidden, intermediate = config.hidden_size, config.moe_intermediate_size
    operators = []
    for values in (2**20, 2**24, 2**26, 2**28, 2**30, 3 * 2**30):
        update = {"values": values, "read": 12, "written": 12}
        operators += [
            sized_operator("gradient_norm", "float32", "float32", {"values": values}),
            sized_operator("optimizer_update", "float32", "float32", update),
        ]
    copies = [(1, out, into) for out, into in weight_shapes(config)]
    for groups in (4, 8):
        copies += [(groups, hidden, 2 * intermediate), (groups, intermediate, hidden)]
    for count, rows, columns in copies:
        sizes = {"groups": count, "rows": rows, "columns": columns}
        operators.append(sized_operator("quantize_weight", "float32", "fp8_e4m3", sizes))
    for rows in (config.n_routed_experts, config.vocab_size):
        sizes = {"rows": rows, "columns": hidden}
        operators.append(sized_operator("cast", "float32", "bfloat16", sizes))
    return operators


def gemm_operator(
    m: int, n: int, k: int, dtype: str = "fp8_e4m3", out_dtype: str = "bfloat16"
) -> Operator:
    """[m, k] x [n, k]^T."""
    return sized_operator("gemm", dtype, out_dtype, {"m": m, "n": n, "k": k})


def weight_gradient(out: int, into: int, tokens: int) -> Operator:
    """[out, tokens] x [in, tokens]^T, added into float32."""
    sizes = {"m": out, "n": into, "k": tokens}
    return sized_operator("gemm", "fp8_e4m3", "float32", sizes, accumulate=True)


def grouped(kind: str, rows: int, n: int, k: int, groups: int) -> Operator:
    """A grouped GEMM, contiguous or masked."""
    sizes = {"rows": rows, "n": n, "k": k, "groups": groups}
    return sized_operator(kind, "fp8_e4m3", "bfloat16", sizes)


def grouped_weight_gradient(rows: int, m: int, n: int, groups: int) -> Operator:
    """The weight gradient of every group, added into float32."""
    sizes = {"rows": rows, "m": m, "n": n, "groups": groups}
    return sized_operator("grouped_gemm_weight_grad", "fp8_e4m3", "float32", sizes, accumulate=True)


def sized_operator(
    kind: str, dtype: str, out_dtype: str, sizes: dict[str, int], *, accumulate: bool = False
) -> Operator:
    """An operator outside any model, known by its sizes."""
    return Operator(
        name=kind,
        kind=kind,
        phase="weight_grad" if accumulate else "forward",
        segment="mlp",
        dtype=dtype,
        out_dtype=out_dtype,
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=accumulate,
    )
