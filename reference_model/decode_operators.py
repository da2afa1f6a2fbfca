"""The kernel-level operators that only inference issues, as torch.library custom operators.

Conventions and letters are those of operators.py; P is the room that a masked grouped GEMM keeps
for the rows of one expert, Q the tokens of one sequence in one step. Low-latency dispatch and
combine are two kernels each: the first sends and returns, the second takes in what has arrived
meanwhile (DeepEP's receive hook), so that nothing runs on the GPU while messages travel.
"""

import torch
from torch import Tensor

from reference_model.kernels import load_backend
from reference_model.operators.casts import quantize_fake
from reference_model.operators.registration import operator


@operator(fake=None, mutates=("out",))
def batched_gemm_into(a: Tensor, b: Tensor, out: Tensor, *, site: str) -> None:
    """Multiply a [batch, m, k] by b [batch, n, k] transposed into out [batch, m, n], one product
    per head; all of them may be strided."""
    out.copy_(torch.bmm(a.float(), b.float().mT))


@operator(fake=None, mutates=("out",))
def rope_into(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, site: str) -> None:
    """Rotate x [S, Q, heads, dim] by the angles of its positions into out of the same shape;
    cos, sin are float32 [Q, dim / 2] or, where sequences stand at different positions,
    [S, Q, dim / 2]."""
    cosine, sine = (a.view(-1, x.shape[1], 1, a.shape[-1]) for a in (cos, sin))
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), -1)
    out.copy_(turned.flatten(-2))


@operator(fake=None, mutates=("cache",))
def append_cache(
    latent: Tensor, key: Tensor, positions: Tensor, cache: Tensor, *, site: str
) -> None:
    """Write normed latents [T, latent] and rotated keys [T, rope] side by side at positions int64
    [S, Q] of cache [S, capacity, latent + rope]."""
    entries = torch.cat((latent, key), dim=1).view(*positions.shape, -1)
    cache.scatter_(1, positions[:, :, None].expand_as(entries), entries)


def _mla_decode_fake(
    q: Tensor, _cache: Tensor, _lengths: Tensor, *, latent_dim: int, **_: object
) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:3], latent_dim))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@operator(fake=_mla_decode_fake)
def mla_decode(
    q: Tensor, cache: Tensor, lengths: Tensor, *, latent_dim: int, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Attention core in the absorbed form: every head reads the same cached latent as key and, but
    for its rotary part, as value (DeepSeek-V2, arXiv:2405.04434, section 2.1.2).

    q [S, Q, N, latent + rope]; cache [S, length, latent + rope]; lengths int32 [S], the tokens of
    each sequence, its Q queries included, which are its last -> [S, Q, N, latent] and the
    log-sum-exp of the scores, float32 [S, Q, N]."""
    queries, capacity = q.shape[1], cache.shape[1]
    scores = torch.einsum("sqnd,skd->sqnk", q.float(), cache.float()) * scale
    key = torch.arange(capacity, device=q.device)
    query = torch.arange(queries, device=q.device)
    last = lengths[:, None] - queries + query[None, :]  # [S, Q], position of each query
    hidden = key[None, None, :] > last[:, :, None]  # [S, Q, length]
    scores = scores.masked_fill(hidden[:, :, None, :], float("-inf"))
    weights = scores.softmax(dim=3)
    out = torch.einsum("sqnk,skd->sqnd", weights, cache[..., :latent_dim].float())
    return out.to(q.dtype), scores.logsumexp(dim=3)


def _dispatch_send_fake(
    x: Tensor, indices: Tensor, *, fp8: bool, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    if not fp8:
        return torch.empty_like(x), x.new_empty((x.shape[0], 0), dtype=torch.float32)
    return quantize_fake(x)


@operator(fake=_dispatch_send_fake)
def dispatch_send(
    x: Tensor, indices: Tensor, *, fp8: bool, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Cast tokens x [T, H] once and post one message for each choice in indices [T, K]; returns the
    send buffer: values [T, H] and scales [T, tiles] (no tiles where the message is not FP8)."""
    if not fp8:
        return x.clone(), torch.empty((x.shape[0], 0), dtype=torch.float32, device=x.device)
    return load_backend(kernels).quantize_tiles(x, power_of_two_scales=True)


def _dispatch_receive_fake(
    values: Tensor,
    scales: Tensor,
    indices: Tensor,
    *,
    rows: int,
    room: int,
    local_experts: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (local_experts, room)
    return (
        values.new_empty((*shape, values.shape[1])),
        scales.new_empty((*shape, scales.shape[1])),
        indices.new_empty((local_experts,), dtype=torch.int32),
        indices.new_empty(shape, dtype=torch.int32),
    )


def check_received(indices: Tensor, *, rows: int, room: int) -> None:
    """Refuse rows that one device which holds every expert does not receive."""
    tokens, choices = indices.shape
    if rows != tokens * choices or room < tokens:
        raise ValueError(
            f"rows = {rows}, room = {room}: one device that holds every expert receives "
            f"{tokens} tokens x {choices} choices; only the meta device shows one rank of many"
        )


@operator(fake=_dispatch_receive_fake)
def dispatch_receive(
    values: Tensor,
    scales: Tensor,
    indices: Tensor,
    *,
    rows: int,
    room: int,
    local_experts: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pack the `rows` messages that arrived by local expert; returns values [E, P, H], scales
    [E, P, tiles], rows of each expert int32 [E], and the (token, choice) each row came from, int32
    [E, P]. One device holds every expert: its own send buffer is what arrives."""
    check_received(indices, rows=rows, room=room)
    choices = indices.shape[1]
    packed = values.new_zeros((local_experts, room, values.shape[1]))
    packed_scales = scales.new_zeros((local_experts, room, scales.shape[1]))
    source = indices.new_zeros((local_experts, room), dtype=torch.int32)
    counts = indices.new_zeros((local_experts,), dtype=torch.int32)
    flat = indices.flatten()
    for expert in range(local_experts):
        chosen = torch.nonzero(flat == expert)[:, 0]
        count = chosen.shape[0]
        token = chosen // choices
        # Moved as bytes: not every torch has index kernels for FP8.
        packed.view(torch.uint8)[expert, :count] = values.view(torch.uint8)[token]
        packed_scales[expert, :count] = scales[token]
        source[expert, :count] = chosen.int()
        counts[expert] = count
    return packed, packed_scales, counts, source


@operator(
    fake=lambda a, b, *_, out_dtype, **__: a.new_empty(
        (a.shape[0], a.shape[1], b.shape[1]), dtype=out_dtype
    )
)
def masked_grouped_gemm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    group_rows: Tensor,
    *,
    rows: int,
    out_dtype: torch.dtype,
    kernels: str,
    site: str,
) -> Tensor:
    """Multiply the first group_rows[e] rows of a [E, P, k] by b [E, n, k] of their expert
    transposed; returns [E, P, n], of which `rows` of all experts together are filled."""
    if a_scales is not None and b_scales is not None:
        return load_backend(kernels).masked_grouped_gemm_fp8(
            a, a_scales, b, b_scales, group_rows=group_rows, out_dtype=out_dtype
        )
    out = a.new_zeros((a.shape[0], a.shape[1], b.shape[1]), dtype=out_dtype)
    for expert, count in enumerate(group_rows.tolist()):
        out[expert, :count] = (a[expert, :count].float() @ b[expert].float().mT).to(out_dtype)
    return out


def _masked_swiglu_fake(
    gate_up: Tensor, group_rows: Tensor, *, rows: int, fp8: bool, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    experts, room, columns = gate_up.shape
    half = columns // 2
    tiles = -(-half // 128) if fp8 else 0
    dtype = torch.float8_e4m3fn if fp8 else gate_up.dtype
    return (
        gate_up.new_empty((experts, room, half), dtype=dtype),
        gate_up.new_empty((experts, room, tiles), dtype=torch.float32),
    )


@operator(fake=_masked_swiglu_fake)
def masked_swiglu(
    gate_up: Tensor, group_rows: Tensor, *, rows: int, fp8: bool, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Apply SwiGLU to the filled rows of gate_up [E, P, 2 columns], quantised in the same pass
    where the next product is FP8; returns values [E, P, columns] and scales [E, P, tiles]."""
    values, scales = _masked_swiglu_fake(
        gate_up, group_rows, rows=rows, fp8=fp8, kernels=kernels, site=site
    )
    values.view(torch.uint8).zero_()
    scales.zero_()
    for expert, count in enumerate(group_rows.tolist()):
        filled = gate_up[expert, :count].float()
        gate, up = filled.chunk(2, dim=1)
        activated = gate * torch.sigmoid(gate) * up
        if not fp8:
            values[expert, :count] = activated.to(gate_up.dtype)
        elif count:
            quantized, tiles = load_backend(kernels).quantize_tiles(
                activated, power_of_two_scales=False
            )
            values.view(torch.uint8)[expert, :count] = quantized.view(torch.uint8)
            scales[expert, :count] = tiles
    return values, scales


@operator(fake=lambda x, _counts, **_: x.new_empty((x.shape[0], x.shape[1], x.shape[2])))
def combine_send(x: Tensor, group_rows: Tensor, *, rows: int, site: str) -> Tensor:
    """Copy the filled rows of x [E, P, H] into the send buffer and post them to the ranks of their
    tokens; returns the buffer."""
    return x.clone()


@operator(
    fake=lambda x, _source, weights, _counts, **_: x.new_empty((weights.shape[0], x.shape[2])),
)
def combine_receive(
    x: Tensor, source: Tensor, weights: Tensor, group_rows: Tensor, *, site: str
) -> Tensor:
    """Sum what returned, x [E, P, H], weighted by the routing weights [T, K]; returns [T, H]."""
    tokens, choices = weights.shape
    total = torch.zeros((tokens, x.shape[2]), dtype=torch.float32, device=x.device)
    flat = weights.flatten()
    for expert, count in enumerate(group_rows.tolist()):
        origin = source[expert, :count].long()
        total.index_add_(0, origin // choices, x[expert, :count].float() * flat[origin, None])
    return total.to(x.dtype)


@operator(fake=lambda logits, **_: logits.new_empty((logits.shape[0],), dtype=torch.int64))
def sample(logits: Tensor, *, site: str) -> Tensor:
    """The most likely token of each row of logits [T, V], int64 [T]."""
    return logits.argmax(dim=1)
