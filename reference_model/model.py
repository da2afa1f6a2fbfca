"""DeepSeek-V3 (arXiv:2412.19437): the whole model, with losses and gradients.

Readable first and on one device, which holds every expert; on the meta device the same code shows
what one rank of an expert-parallel group issues. Layers and their passes are those of blocks.py.

Shape legend
    T  tokens of the micro-batch, sequence after sequence     H  hidden size
    S  sequences, L tokens of one (T = S x L)                 N  attention heads
    D  tokens received by dispatch, one a (token, rank)       I  intermediate size
    R  rows of the local experts, one a (token, expert)       E  local experts
    K  experts a token chooses                                V  vocabulary
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.blocks import (
    DenseBlock,
    MoEBlock,
    ResidualStream,
    SavedBlock,
    SavedLayer,
    WeightGrads,
    run_weight_grads,
)
from reference_model.config import ModelConfig
from reference_model.layers import (
    Angles,
    HighPrecisionLinear,
    Linear,
    RMSNorm,
    Weight,
    WeightGrad,
    gradient,
    rotary_angles,
)
from reference_model.moe import ExpertRows, SavedMoE
from reference_model.operators import Site
from reference_model.precision import Recipe
from reference_model.split import WHOLE, Split
from reference_model.tensor_parallel import tensor_group

# -- vocabulary ------------------------------------------------------------------------------------


class Embedding(Weight):
    """Table of token embeddings, shared with the multi-token prediction module.

    Of a part of the vocabulary it takes the tokens of all GPUs and returns a GPU's own."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        shape = (config.vocab_size // split.tensor, config.hidden_size)
        super().__init__("embedding", shape, recipe=recipe, device=device)
        self.group = tensor_group(split)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up tokens int64 [T]; returns [T, H]."""
        site = Site("forward", "embedding")
        table = self.working_copy().values
        if self.group.ranks == 1:
            return ops.embedding(tokens, table, site=site("embedding"))
        first = self.group.rank() * table.shape[0]
        mine = ops.embedding_part(tokens, table, first=first, site=site("embedding"))
        return self.group.scatter(mine, "embedding", site)

    def weight_grad(self, grad: Tensor, tokens: Tensor, site: Site) -> None:
        """Add the gradient of the embeddings [T, H] into the rows of their tokens."""
        grad = self.group.gather(grad, "embedding", site)
        total, name = gradient(self.weight), site("embedding.weight_grad")
        if self.group.ranks == 1:
            ops.embedding_backward(total, tokens, grad, site=name)
        else:
            first = self.group.rank() * total.shape[0]
            ops.embedding_backward_part(total, tokens, grad, first=first, site=name)


@dataclass(slots=True)
class SavedHead:
    """What the backward of norm, head and loss needs."""

    total: Tensor
    """Residual stream [T, H]."""
    normed: Tensor | None
    """The same normed [T, H]; None where norms are recomputed."""
    logits: Tensor
    """[T, V]"""
    targets: Tensor
    log_sum: Tensor


class Head(HighPrecisionLinear):
    """The projection of the normed stream onto the vocabulary, and the cross-entropy of it.

    Of a part of the vocabulary it takes a GPU's own tokens, and projects those of all."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        super().__init__(
            "head.proj", config.vocab_size // split.tensor, config.hidden_size,
            out_dtype=recipe.dtype, recipe=recipe, device=device,
        )  # fmt: skip
        self.group = tensor_group(split)

    def gather(self, normed: Tensor, site: Site) -> Tensor:
        """Gather the tokens of all GPUs from own tokens of the normed stream [T, H]."""
        return self.group.gather(normed, "head", site)

    def loss(self, logits: Tensor, targets: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Compute of logits [T, V] the mean loss of `targets` [T], and the log-sum-exp of each row
        [T]."""
        if self.group.ranks == 1:
            return ops.cross_entropy(logits, targets, site=site("cross_entropy"))
        parts = ops.cross_entropy_part(
            logits, targets, first=self._first(logits), site=site("cross_entropy")
        )
        return ops.cross_entropy_merged(
            self.group.gather(parts, "cross_entropy", site),
            ranks=self.group.ranks, site=site("cross_entropy.merged"),
        )  # fmt: skip

    def loss_backward(self, saved: "SavedHead", site: str, *, weight: float) -> Tensor:
        """Gradient of `weight` x the mean loss, like the logits."""
        arguments = (saved.logits, saved.targets, saved.log_sum)
        if self.group.ranks == 1:
            return ops.cross_entropy_backward(*arguments, weight=weight, site=site)
        first = self._first(saved.logits)
        return ops.cross_entropy_backward_part(*arguments, first=first, weight=weight, site=site)

    def _first(self, logits: Tensor) -> int:
        return self.group.rank() * logits.shape[1]


def head_loss(
    norm: RMSNorm,
    head: Head,
    stream: ResidualStream,
    targets: Tensor,
    *,
    recompute: str = "published",
) -> tuple[Tensor, Tensor, SavedHead]:
    """Apply norm, head and cross-entropy of `targets` [T]; returns mean loss and normed stream
    [T, H]."""
    site = Site("forward", "head")
    normed, total = norm.add(stream.update, stream.residual, site)
    logits = head(head.gather(normed, site), site)
    loss, log_sum = head.loss(logits, targets, site)
    kept = normed if recompute == "none" else None
    return loss, normed, SavedHead(total, kept, logits, targets, log_sum)


def head_input_grad(
    norm: RMSNorm,
    head: Head,
    saved: SavedHead,
    *,
    weight: float,
    normed_grad: Tensor | None,
) -> tuple[Tensor, WeightGrad]:
    """Compute the gradient of both parts of the stream [T, H], of `weight` x the mean loss plus
    whatever else reads the normed stream, whose gradient is `normed_grad`; and the head's weight
    gradient."""
    site = Site("input_grad", "head")
    again = replace(site, recompute=True)
    own = norm(saved.total, again) if saved.normed is None else saved.normed
    normed = head.gather(own, again)
    logits_grad = head.loss_backward(saved, site("cross_entropy.input_grad"), weight=weight)
    grad = head.group.scatter(head.input_grad(logits_grad, site), "head", site)
    if normed_grad is not None:
        grad = ops.add(grad, normed_grad, site=site("head.add_input_grads"))
    weight_grad = partial(head.weight_grad, logits_grad, normed)
    return norm.backward(grad, saved.total, site), weight_grad


# -- multi-token prediction ------------------------------------------------------------------------


@dataclass(slots=True)
class SavedPrediction:
    """What the backward of the multi-token prediction module needs."""

    hidden: Tensor
    """Normed stream of the main model [T, H]."""
    embedded: Tensor
    """Embeddings of the next tokens [T, H]."""
    joined: Tensor | None
    """Both normed, side by side [T, 2 H]; None where norms are recomputed."""
    tokens: Tensor
    block: SavedBlock[SavedMoE] | Tensor
    head: SavedHead


class MultiTokenPrediction(nn.Module):
    """Predicts the token after the next from the main model's stream and the next token's
    embedding (Report, 2.2): both normed, joined, projected from 2 H to H, and one more layer.
    Embedding and head are the main model's and passed in."""

    def __init__(
        self, config: ModelConfig, local_experts: int, *, recipe: Recipe, device: torch.device,
        split: Split = WHOLE,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm("mtp.embedding_norm", hidden, eps=eps, device=device)
        self.hnorm = RMSNorm("mtp.hidden_norm", hidden, eps=eps, device=device)
        self.eh_proj = Linear("mtp.projection", hidden, 2 * hidden, recipe=recipe, device=device)
        self.block = MoEBlock(config, local_experts, recipe=recipe, device=device, split=split)
        self.norm = RMSNorm("head.norm", hidden, eps=eps, device=device)

    def forward(
        self, hidden: Tensor, embedded: Tensor, angles: Angles, rows: ExpertRows
    ) -> tuple[ResidualStream, SavedBlock[SavedMoE] | Tensor, Tensor]:
        """Join the normed stream [T, H] of the main model with embeddings of the next tokens
        [T, H] into the stream that `norm` and the shared head turn into logits of the tokens
        after those."""
        site = Site("forward", "mtp")
        joined = self._joined(hidden, embedded, site)
        projected = self.eh_proj(self.eh_proj.quantize_input(joined, site), site)
        stream: ResidualStream
        stream, saved = self.block(ResidualStream(projected, None), angles, rows)
        return stream, saved, joined

    def loss(
        self,
        hidden: Tensor,
        tokens: Tensor,
        targets: Tensor,
        *,
        embedding: Embedding,
        head: Head,
        angles: Angles,
        rows: ExpertRows,
    ) -> tuple[Tensor, SavedPrediction]:
        """Mean loss of `targets` [T], the tokens after `tokens` [T], which follow those of
        `hidden` [T, H]."""
        embedded = embedding(tokens)
        stream, saved_block, joined = self.forward(hidden, embedded, angles, rows)
        recompute = self.block.recompute
        loss, _, saved_head = head_loss(self.norm, head, stream, targets, recompute=recompute)
        kept = joined if recompute == "none" else None
        return loss, SavedPrediction(hidden, embedded, kept, tokens, saved_block, saved_head)

    def input_grad(
        self,
        saved: SavedPrediction,
        embedding: Embedding,
        head: Head,
        angles: Angles,
        rows: ExpertRows,
        *,
        weight: float,
    ) -> tuple[Tensor, WeightGrads]:
        """Compute the gradient of the main model's normed stream [T, H], of `weight` x the mean
        loss."""
        grad, head_grad = head_input_grad(
            self.norm, head, saved.head, weight=weight, normed_grad=None
        )
        grad, block_grads = self.block.input_grad(grad, saved.block, angles, rows)
        site = Site("input_grad", "mtp")
        joined = saved.joined
        if joined is None:
            joined = self._joined(saved.hidden, saved.embedded, replace(site, recompute=True))
        joined_grad, projection = self.eh_proj.backward(grad, joined, site)
        columns = saved.hidden.shape[1]
        embedded_grad = self.enorm.backward(joined_grad[:, :columns], saved.embedded, site)
        hidden_grad = self.hnorm.backward(joined_grad[:, columns:], saved.hidden, site)
        return hidden_grad, {
            "head": [head_grad],
            **block_grads,
            "mtp": [projection],
            "embedding": [partial(embedding.weight_grad, embedded_grad, saved.tokens)],
        }

    def _joined(self, hidden: Tensor, embedded: Tensor, site: Site) -> Tensor:
        """Both inputs normed, side by side [T, 2 H]; the embedding first, as in the checkpoint."""
        return ops.concat(
            self.enorm(embedded, site), self.hnorm(hidden, site), site=site("mtp.concat")
        )


# -- the whole model -------------------------------------------------------------------------------


class Losses(NamedTuple):
    """Mean cross-entropy of a micro-batch, in nats a token."""

    main: Tensor
    """Of the next token."""
    mtp: Tensor | None
    """Of the token after it, where the model has a multi-token prediction module."""
    total: Tensor
    """main + weight x mtp: what is differentiated."""


@dataclass(slots=True)
class SavedStep:
    """What the backward of a micro-batch needs, of the whole model or of one pipeline stage."""

    tokens: Tensor
    """Those that the embedding read [T]."""
    blocks: list[SavedLayer]
    head: SavedHead | None
    """None where another stage has it."""
    prediction: SavedPrediction | None
    prediction_weight: float
    angles: Angles
    rows: ExpertRows


class Transformer(nn.Module):
    """The model: embedding, layers, norm, head, and a multi-token prediction module that shares
    embedding and head."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.device = device
        self.split = split
        experts = config.n_routed_experts
        self.embed_tokens = Embedding(config, recipe=recipe, device=device, split=split)
        self.layers = nn.ModuleList(
            DenseBlock(config, recipe=recipe, device=device, split=split)
            if layer < config.first_k_dense_replace
            else MoEBlock(config, experts, recipe=recipe, device=device, split=split)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm("head.norm", config.hidden_size, eps=config.rms_norm_eps, device=device)
        self.lm_head = Head(config, recipe=recipe, device=device, split=split)
        self.mtp = (
            MultiTokenPrediction(config, experts, recipe=recipe, device=device, split=split)
            if config.num_nextn_predict_layers
            else None
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Random weights: matrices normal with variance 1 / fan-in, norms 1, biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0 if name.endswith("bias") else 1)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Read tokens int64 [S, L]; returns logits [S, L, V] of the token after each."""
        stream, _, _, _ = self._run_layers(tokens)
        site = Site("forward", "head")
        normed, _ = self.norm.add(stream.update, stream.residual, site)
        logits: Tensor = self.lm_head(normed, site)
        return logits.view(*tokens.shape, -1)

    @torch.no_grad()
    def loss(self, tokens: Tensor, *, prediction_weight: float) -> tuple[Losses, SavedStep]:
        """Losses of sequences of L + 1 tokens (L + 2 with multi-token prediction, int64 [S, .]):
        each of the first L tokens predicts the next, and the one after the next.

        `prediction_weight` is the Report's lambda, 0.3 and later 0.1 (section 4.2)."""
        length = tokens.shape[1] - (1 if self.mtp is None else 2)
        stream, blocks, angles, rows = self._run_layers(tokens[:, :length])

        def shifted(by: int) -> Tensor:
            return tokens[:, by : by + length].reshape(-1)

        main, normed, head = head_loss(self.norm, self.lm_head, stream, shifted(1))
        prediction, mtp, total = None, None, main
        if self.mtp is not None:
            mtp, prediction = self.mtp.loss(
                normed,
                shifted(1),
                shifted(2),
                embedding=self.embed_tokens,
                head=self.lm_head,
                angles=angles,
                rows=rows,
            )
            total = main + prediction_weight * mtp
        saved = SavedStep(shifted(0), blocks, head, prediction, prediction_weight, angles, rows)
        return Losses(main, mtp, total), saved

    @torch.no_grad()
    def backward(self, saved: SavedStep, *, weight: float = 1.0) -> None:
        """Add the gradient of `weight` x the total loss into every parameter's `.grad`."""
        angles, rows = saved.angles, saved.rows
        normed_grad = None
        if self.mtp is not None and saved.prediction is not None:
            normed_grad, prediction_grads = self.mtp.input_grad(
                saved.prediction, self.embed_tokens, self.lm_head, angles, rows,
                weight=weight * saved.prediction_weight,
            )  # fmt: skip
            run_weight_grads(prediction_grads)
        assert saved.head is not None, "the whole model has it"
        grad, head_grad = head_input_grad(
            self.norm, self.lm_head, saved.head, weight=weight, normed_grad=normed_grad
        )
        head_grad(Site("weight_grad", "head"))
        for block, saved_block in zip(self.blocks[::-1], saved.blocks[::-1], strict=True):
            grad, weight_grads = block.input_grad(grad, saved_block, angles, rows)
            run_weight_grads(weight_grads)
        self.embed_tokens.weight_grad(grad, saved.tokens, Site("weight_grad", "embedding"))

    @property
    def blocks(self) -> list[Any]:
        """The layers in order, each a `DenseBlock` or a `MoEBlock`."""
        return list(self.layers)

    def _run_layers(
        self, tokens: Tensor
    ) -> tuple[
        ResidualStream,
        list[SavedLayer],
        Angles,
        ExpertRows,
    ]:
        if tokens.dim() != 2 or tokens.shape[1] < 1:
            raise ValueError(
                f"tokens of shape {list(tokens.shape)} are not [sequences, length of at least 1]"
            )
        angles = rotary_angles(self.config, tokens.shape[1], device=self.device)
        # One device holds every expert, or its part of each: it receives each of its own tokens
        # once, for all of its choices.
        count = tokens.numel() // self.split.tensor
        expanded = self.split.expert_tensor * count * self.config.num_experts_per_tok
        rows = ExpertRows(received=count, expanded=expanded)
        stream = ResidualStream(self.embed_tokens(tokens.reshape(-1)), None)
        saved = []
        for block in self.blocks:
            stream, saved_block = block(stream, angles, rows)
            saved.append(saved_block)
        return stream, saved, angles, rows
