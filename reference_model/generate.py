"""Greedy decoding with the latent KV cache, one or two tokens per step.

Plain decoding feeds back one token per step. With the multi-token prediction module as a draft
(Technical Report, sections 2.2 and 5.4.3) a step runs the model on two: the last token and the
drafted one after it. Where the model's own choice after the last token is the draft, its choice
after the draft counts as well, so the output is that of plain decoding and a step yields one token
or two. The module then drafts from the hidden states of the step; it keeps a cache of its own.
Entries that a refused draft left in the caches are overwritten by the next step.

Letters are those of decode.py: S sequences, L prompt tokens, Q tokens of one sequence in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from reference_model.blocks import ResidualStream
from reference_model.captured import Captured, can_capture
from reference_model.config import ModelConfig
from reference_model.decode import (
    HEAD,
    InferenceBlock,
    InferenceModel,
    LatentCache,
    decode_positions,
    draft_input,
    empty_cache,
)
from reference_model.layers import RMSNorm, rotary_angles
from reference_model.model import Transformer
from reference_model.moe import ExpertRows
from reference_model.parameter_counts import parameter_counts

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Generation:
    """Generated tokens and what they took."""

    tokens: Tensor
    """int64 [S, new tokens]"""
    steps: int
    """Runs of the model after the prompt, summed over sequences."""
    accepted: int
    """Drafts that were what the model itself chose; 0 without a draft."""
    seconds: float
    """Wall time after the prompt."""

    @property
    def acceptance(self) -> float:
        """Share of drafts accepted."""
        return self.accepted / self.steps

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a sequence gains in a step."""
        return 1 + self.acceptance


class Decoder:
    """A model, its multi-token prediction module, and their caches for some sequences."""

    def __init__(self, model: Transformer, *, sequences: int, capacity: int) -> None:
        """`capacity`: tokens of each sequence, those of one step too many included."""
        self.model = model
        self.config = model.config
        self.capacity = capacity
        self.blocks = InferenceModel(model).blocks
        self.mtp_block = None if model.mtp is None else InferenceBlock(model.mtp.block)

        def cache() -> LatentCache:
            return empty_cache(
                model.config,
                sequences=sequences,
                capacity=capacity,
                recipe=model.recipe,
                device=model.device,
            )

        self.caches = [cache() for _ in self.blocks]
        self.mtp_cache = cache()
        self._captured: dict[tuple[object, ...], Captured[Any]] = {}

    @torch.no_grad()
    def prefill(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Read prompts [S, L]; returns logits of the token after each [S, V], and the normed stream
        of every prompt token [S, L, H]."""
        stream = ResidualStream(self.model.embed_tokens(prompts.reshape(-1)), None)
        stream = self._whole(self.blocks, stream, self.caches, prompts)
        logits, normed = self._head(self.model.norm, stream, prompts)
        return logits[:, -1], normed

    @torch.no_grad()
    def extend(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read the next tokens [S, Q] after `lengths` [S] cached ones; returns logits of the token
        after each [S, Q, V], and their normed stream [S, Q, H].

        An FP8 step on a GPU is captured in a CUDA graph and replayed; its results are then valid
        until the next step."""
        return self._step(self._extend, tokens, lengths)

    def _step(self, function: Callable[..., _T], *inputs: Tensor) -> _T:
        """A step, replayed from its graph where it can be captured."""
        if not can_capture(self.model.recipe, self.model.device):
            return function(*inputs)
        key = (function.__name__, *(x.shape for x in inputs))
        if key not in self._captured:
            self._captured[key] = Captured(function, *inputs)
        result: _T = self._captured[key](*inputs)
        return result

    def _extend(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        stream = ResidualStream(self.model.embed_tokens(tokens.reshape(-1)), None)
        stream = self._next(self.blocks, stream, self.caches, tokens, lengths)
        return self._head(self.model.norm, stream, tokens)

    @torch.no_grad()
    def draft_prefill(self, hidden: Tensor, following: Tensor) -> Tensor:
        """Draft from the normed stream of the prompts [S, L, H], and the token that follows each
        [S, L], the token to come after the last of those, int64 [S]."""
        stream = self._whole(
            [self._mtp], self._draft_input(hidden, following), [self.mtp_cache], following
        )
        return self._draft_tokens(stream, following)[:, -1]

    @torch.no_grad()
    def draft(self, hidden: Tensor, following: Tensor, lengths: Tensor) -> Tensor:
        """Draft from the normed stream of a step's tokens [S, Q, H], and the token that follows
        each [S, Q], the token to come after each of those, int64 [S, Q]."""
        return self._step(self._draft, hidden, following, lengths)

    def _draft(self, hidden: Tensor, following: Tensor, lengths: Tensor) -> Tensor:
        stream = self._next(
            [self._mtp], self._draft_input(hidden, following), [self.mtp_cache], following, lengths
        )
        return self._draft_tokens(stream, following)

    @property
    def _mtp(self) -> InferenceBlock:
        if self.mtp_block is None:
            raise ValueError("the model has no multi-token prediction module to draft with")
        return self.mtp_block

    def _draft_input(self, hidden: Tensor, following: Tensor) -> ResidualStream:
        assert self.model.mtp is not None
        return draft_input(
            self.model.mtp, hidden.flatten(0, 1), following.flatten(), self.model.embed_tokens
        )

    def _draft_tokens(self, stream: ResidualStream, tokens: Tensor) -> Tensor:
        assert self.model.mtp is not None
        return self._head(self.model.mtp.norm, stream, tokens)[0].argmax(dim=2)

    def _whole(
        self,
        blocks: list[InferenceBlock],
        stream: ResidualStream,
        caches: list[LatentCache],
        tokens: Tensor,
    ) -> ResidualStream:
        """Sequences [S, L] from their beginning."""
        length, count = tokens.shape[1], tokens.numel()
        angles = rotary_angles(self.config, length, device=self.model.device)
        rows = ExpertRows(received=count, expanded=count * self.config.num_experts_per_tok)
        index = torch.arange(length, device=self.model.device).expand(tokens.shape[0], -1)
        for block, cache in zip(blocks, caches, strict=True):
            stream = block.prefill(stream, angles, index, cache, rows)
        return stream

    def _next(
        self,
        blocks: list[InferenceBlock],
        stream: ResidualStream,
        caches: list[LatentCache],
        tokens: Tensor,
        lengths: Tensor,
    ) -> ResidualStream:
        """The next tokens [S, Q] of sequences that hold `lengths` [S]."""
        rows = tokens.numel() * self.config.num_experts_per_tok
        positions = decode_positions(
            self.config, lengths, tokens.shape[1], self.capacity, device=self.model.device
        )
        for block, cache in zip(blocks, caches, strict=True):
            stream = block.decode(stream, positions, cache, rows)
        return stream

    def _head(self, norm: RMSNorm, stream: ResidualStream, tokens: Tensor) -> tuple[Tensor, Tensor]:
        normed, _ = norm.add(stream.update, stream.residual, HEAD)
        logits: Tensor = self.model.lm_head(normed, HEAD)
        return logits.view(*tokens.shape, -1), normed.view(*tokens.shape, -1)


def generate(model: Transformer, prompts: Tensor, *, new_tokens: int) -> Generation:
    """Greedy continuation of prompts [S, L], one token per step."""
    _check(prompts, new_tokens)
    sequences, length = prompts.shape
    decoder = Decoder(model, sequences=sequences, capacity=length + new_tokens)
    logits, _ = decoder.prefill(prompts)
    chosen = [logits.argmax(dim=1)]
    start = time.perf_counter()
    for step in range(new_tokens - 1):
        lengths = torch.full((sequences,), length + step, device=prompts.device)
        logits, _ = decoder.extend(chosen[-1][:, None], lengths)
        chosen.append(logits[:, -1].argmax(dim=1))
    return Generation(
        tokens=torch.stack(chosen, dim=1),
        steps=sequences * (new_tokens - 1),
        accepted=0,
        seconds=time.perf_counter() - start,
    )


def generate_with_draft(model: Transformer, prompts: Tensor, *, new_tokens: int) -> Generation:
    """The same with the multi-token prediction module as a draft, one token or two a step.

    Raises ValueError where the model has no such module."""
    _check(prompts, new_tokens)
    sequences, length = prompts.shape
    decoder = Decoder(model, sequences=sequences, capacity=length + new_tokens + 2)
    logits, hidden = decoder.prefill(prompts)
    last = logits.argmax(dim=1)  # [S]
    draft = decoder.draft_prefill(hidden, torch.cat((prompts[:, 1:], last[:, None]), dim=1))
    tokens = prompts.new_zeros((sequences, new_tokens + 1))  # room for one token too many
    tokens[:, 0] = last
    count = torch.ones_like(last)
    each = torch.arange(sequences, device=prompts.device)
    steps = accepted = 0
    start = time.perf_counter()
    while bool((count < new_tokens).any()):
        active = count < new_tokens
        lengths = length + count - 1  # all but the last token are cached
        logits, hidden = decoder.extend(torch.stack((last, draft), dim=1), lengths)
        best = logits.argmax(dim=2)  # [S, 2]: after the last token, and after the draft
        right = best[:, 0] == draft
        drafts = decoder.draft(hidden, best, lengths)
        place = count.clamp(max=new_tokens - 1)
        tokens[each, place] = torch.where(active, best[:, 0], tokens[each, place])
        both = active & right
        tokens[each, place + 1] = torch.where(both, best[:, 1], tokens[each, place + 1])
        steps += int(active.sum())
        accepted += int(both.sum())
        taken = right.long()
        last = torch.where(active, best[each, taken], last)
        draft = torch.where(active, drafts[each, taken], draft)
        count = count + active + both
    return Generation(tokens[:, :new_tokens], steps, accepted, time.perf_counter() - start)


def first_difference(one: Tensor, other: Tensor) -> tuple[int, int] | None:
    """Sequence and position of the first token [S, N] in which they differ, if any."""
    differing = torch.nonzero(one != other)
    return None if not len(differing) else (int(differing[0, 0]), int(differing[0, 1]))


def draft_cost(config: ModelConfig) -> float:
    """What drafting one token adds to a step: parameters that a token passes through in the module,
    output head included, over those of the main model. Decoding few sequences reads each once."""
    counts = parameter_counts(config)
    layer = (
        counts.attention
        + counts.layer_norms
        + counts.router
        + counts.shared_experts
        + config.num_experts_per_tok * counts.expert
    )
    projection = 2 * config.hidden_size**2 + 3 * config.hidden_size
    return (layer + projection + counts.head) / counts.activated


def expected_speedup(acceptance: float, cost: float) -> float:
    """Tokens a second over those of plain decoding, where a step of two tokens takes the time of
    one (decoding is bound by memory) and drafting adds `cost` of it."""
    return (1 + acceptance) / (1 + cost)


def _check(prompts: Tensor, new_tokens: int) -> None:
    if prompts.dim() != 2 or not prompts.numel():
        raise ValueError(f"prompts of shape {list(prompts.shape)} are not [sequences, length]")
    if new_tokens < 2:
        raise ValueError(f"new_tokens = {new_tokens} must be at least 2: one is the prompt's")
