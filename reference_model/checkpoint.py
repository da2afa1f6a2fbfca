"""Read and write a model's weights under the names of a Hugging Face checkpoint.

The checkpoint stores gate and up projections, and experts, one by one; the model holds them joined.
The multi-token prediction module is the layer after the last, with copies of embedding and head.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from reference_model.blocks import Block, MoEBlock
from reference_model.model import Transformer
from reference_model.moe import FeedForward


def export_weights(model: Transformer) -> dict[str, Tensor]:
    """Copies of the float32 master weights, each [out, in], by their names in a checkpoint."""
    named = {name: view.detach().clone() for name, view in _named_views(model)}
    if model.mtp is not None:
        prefix = f"model.layers.{model.config.num_hidden_layers}"
        named[f"{prefix}.embed_tokens.weight"] = named["model.embed_tokens.weight"].clone()
        named[f"{prefix}.shared_head.head.weight"] = named["lm_head.weight"].clone()
    return named


@torch.no_grad()
def import_weights(model: Transformer, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy named tensors into the model's master weights. Names that the model does not have are
    ignored, as are all of a multi-token prediction module where it has none.

    Raises ValueError naming `source` and the tensor that is missing or of another shape."""
    views = dict(_named_views(model))
    for name, view in views.items():
        if name not in tensors:
            raise ValueError(f"{source}: tensor {name} is missing")
        if tensors[name].shape != view.shape:
            raise ValueError(
                f"{source}: tensor {name} has shape {list(tensors[name].shape)}, the config gives"
                f" {list(view.shape)}"
            )
    for name, view in views.items():
        view.copy_(tensors[name])


def _named_views(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Checkpoint name and view of the weights that it holds, for every weight of the model."""
    yield "model.embed_tokens.weight", model.embed_tokens.weight
    for index, block in enumerate(model.blocks):
        yield from _layer_views(f"model.layers.{index}", block)
    yield "model.norm.weight", model.norm.weight
    yield "lm_head.weight", model.lm_head.weight
    if model.mtp is not None:
        prefix = f"model.layers.{model.config.num_hidden_layers}"
        yield f"{prefix}.enorm.weight", model.mtp.enorm.weight
        yield f"{prefix}.hnorm.weight", model.mtp.hnorm.weight
        yield f"{prefix}.eh_proj.weight", model.mtp.eh_proj.weight
        yield from _layer_views(prefix, model.mtp.block)
        yield f"{prefix}.shared_head.norm.weight", model.mtp.norm.weight


def _layer_views(prefix: str, block: Block) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.input_layernorm.weight", block.input_layernorm.weight
    for name, parameter in block.self_attn.named_parameters():
        yield f"{prefix}.self_attn.{name}", parameter
    yield f"{prefix}.post_attention_layernorm.weight", block.post_attention_layernorm.weight
    if not isinstance(block, MoEBlock):
        dense: FeedForward = block.mlp  # type: ignore[assignment]
        yield from _feed_forward_views(f"{prefix}.mlp", dense)
        return
    moe = block.mlp
    yield f"{prefix}.mlp.gate.weight", moe.gate.proj.weight
    if moe.gate.e_score_correction_bias is not None:
        yield f"{prefix}.mlp.gate.e_score_correction_bias", moe.gate.e_score_correction_bias
    gate_up, down = moe.experts.gate_up_proj.weight, moe.experts.down_proj.weight
    for expert in range(moe.experts.local_experts):
        yield from _projections(f"{prefix}.mlp.experts.{expert}", gate_up[expert], down[expert])
    yield from _feed_forward_views(f"{prefix}.mlp.shared_experts", moe.shared_experts)


def _feed_forward_views(prefix: str, layer: FeedForward) -> Iterator[tuple[str, Tensor]]:
    yield from _projections(prefix, layer.gate_up_proj.weight, layer.down_proj.weight)


def _projections(prefix: str, gate_up: Tensor, down: Tensor) -> Iterator[tuple[str, Tensor]]:
    gate, up = gate_up.chunk(2, dim=0)
    yield f"{prefix}.gate_proj.weight", gate
    yield f"{prefix}.up_proj.weight", up
    yield f"{prefix}.down_proj.weight", down
