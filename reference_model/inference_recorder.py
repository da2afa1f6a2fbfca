"""Record the operators that one rank issues in a prefill pass and in a decode step.

As recorder.py for training, on the meta device. A prefill layer is recorded over `sequences` whole
prompts of `context` tokens. A decode layer is recorded with one new token for each of `tokens`
sequences, whose caches hold `context` tokens; more tokens of a sequence in one step are, to every
operator but the attention core, more sequences. The multi-token prediction layer is its projection
and one layer; its logits are the head's. Sampling is part of the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reference_model.blocks import DenseBlock, MoEBlock, ResidualStream
from reference_model.config import ModelConfig
from reference_model.decode import (
    InferenceBlock,
    LatentCache,
    draft_input,
    empty_cache,
    next_tokens,
)
from reference_model.decode import decode_positions as positions_of
from reference_model.layers import RMSNorm, rotary_angles
from reference_model.model import Embedding, Head, MultiTokenPrediction
from reference_model.moe import ExpertRows
from reference_model.precision import Recipe
from reference_model.recorder import (
    POINTS,
    UNSEEN,
    OperatorRecorder,
    prepare_weights,
    solve_layer,
)
from reference_model.trace import LAYER_KINDS, OperatorTemplate, OperatorTrace, Workload

INFERENCE_JOBS = ("prefill", "decode")


def record_inference_layer(
    config: ModelConfig, job: str, layer_kind: str, workload: Workload, *, recipe: Recipe
) -> OperatorRecorder:
    """Run one layer of `layer_kind` on the meta device and record what it issues."""
    layer = _Layer(config, job, workload, recipe)
    run = layer.prepared(layer_kind)
    recorder = OperatorRecorder()
    with torch.no_grad(), recorder:
        run()
    return recorder


def record_inference_trace(
    config: ModelConfig, *, job: str, model: str, recipe: Recipe
) -> OperatorTrace:
    """Record every kind of layer in one of `INFERENCE_JOBS`, on the meta device.

    Raises ValueError where a size is not an affine function of the workload variables."""
    if job not in INFERENCE_JOBS:
        raise ValueError(f"job {job!r} is not one of {list(INFERENCE_JOBS)}")
    templates: dict[tuple[str, str], tuple[OperatorTemplate, ...]] = {}
    for kind in LAYER_KINDS:
        points = [
            record_inference_layer(config, job, kind, point, recipe=recipe).recorded
            for point in POINTS
        ]
        unseen = record_inference_layer(config, job, kind, UNSEEN, recipe=recipe).recorded
        templates[kind, "forward"] = tuple(solve_layer(kind, points, unseen))
    return OperatorTrace(
        model=model,
        shape_digest=config.shape_digest,
        job=job,
        recipe=recipe.name,
        templates=templates,
        saved={},
    )


class _Layer:
    """One layer on the meta device, and what enters it."""

    def __init__(self, config: ModelConfig, job: str, workload: Workload, recipe: Recipe) -> None:
        self.config, self.job, self.workload, self.recipe = config, job, workload, recipe
        self.device = torch.device("meta")

    def prepared(self, layer_kind: str) -> Callable[[], Any]:
        """Make the layer's modules and working copies; what is returned runs it."""
        build: Callable[[], Callable[[], Any]] = getattr(self, f"_{layer_kind}")
        with torch.no_grad():
            return build()

    def _embedding(self) -> Callable[[], Any]:
        table = self._ready(Embedding(self.config, recipe=self.recipe, device=self.device))
        return lambda: table(self._tokens())

    def _dense(self) -> Callable[[], Any]:
        return self._block(DenseBlock(self.config, recipe=self.recipe, device=self.device))

    def _moe(self) -> Callable[[], Any]:
        experts = self.workload.local_experts
        return self._block(MoEBlock(self.config, experts, recipe=self.recipe, device=self.device))

    def _mtp(self) -> Callable[[], Any]:
        module = self._ready(
            MultiTokenPrediction(
                self.config, self.workload.local_experts, recipe=self.recipe, device=self.device
            )
        )
        table = self._ready(Embedding(self.config, recipe=self.recipe, device=self.device))
        block = InferenceBlock(module.block)
        cache, run = self._cache(), self._run_block
        hidden = self._hidden(self.workload.tokens)
        return lambda: run(block, draft_input(module, hidden, self._tokens(), table), cache)

    def _head(self) -> Callable[[], Any]:
        config = self.config
        norm = RMSNorm("head.norm", config.hidden_size, eps=config.rms_norm_eps, device=self.device)
        head = self._ready(Head(config, recipe=self.recipe, device=self.device))
        # Of a prompt, only the last token is followed by one that is not known.
        rows = self.workload.sequences if self.job == "prefill" else self.workload.tokens
        stream = ResidualStream(self._hidden(rows), self._hidden(rows))
        return lambda: next_tokens(norm, head, stream)

    def _block(self, block: DenseBlock | MoEBlock) -> Callable[[], Any]:
        self._ready(block)
        arranged, cache, run = InferenceBlock(block), self._cache(), self._run_block
        stream = ResidualStream(*(self._hidden(self.workload.tokens) for _ in range(2)))
        return lambda: run(arranged, stream, cache)

    def _run_block(
        self, block: InferenceBlock, stream: ResidualStream, cache: LatentCache
    ) -> ResidualStream:
        work = self.workload
        if self.job == "prefill":
            rows = ExpertRows(received=work.received_rows, expanded=work.expert_rows)
            return block.prefill(stream, self.angles, self.index, cache, rows)
        return block.decode(stream, self.positions, cache, work.expert_rows)

    def _cache(self) -> LatentCache:
        """The layer's cache, and the positions of its new tokens, made before recording starts."""
        work = self.workload
        sequences = work.sequences if self.job == "prefill" else work.tokens
        if self.job == "prefill":
            self.angles = rotary_angles(self.config, work.context, device=self.device)
            self.index = torch.empty(
                (sequences, work.context), dtype=torch.int64, device=self.device
            )
        else:
            lengths = torch.empty((sequences,), dtype=torch.int64, device=self.device)
            self.positions = positions_of(self.config, lengths, 1, work.context, device=self.device)
        return empty_cache(
            self.config,
            sequences=sequences,
            capacity=work.context,
            recipe=self.recipe,
            device=self.device,
        )

    def _ready(self, module: Any) -> Any:
        assert isinstance(module, nn.Module)
        prepare_weights(module)
        return module

    def _tokens(self) -> Tensor:
        return torch.empty((self.workload.tokens,), dtype=torch.int64, device=self.device)

    def _hidden(self, rows: int) -> Tensor:
        shape = (rows, self.config.hidden_size)
        return torch.empty(shape, dtype=self.recipe.dtype, device=self.device)
