"""Precision recipes as data: the type of each product of a layer, and with it what is stored.

A recording in FP8 holds the operators of every recipe: products change their type, casts are there
where activations are quantised and gone where they are not, and tokens travel to experts in the
type in which these multiply. The absorbed products of decode, the gate, embedding and output head
are BF16 in every recipe, as recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import cast

from hardware_profiles.profile_files import known_profiles
from hardware_profiles.schema import GpuProfile, load_gpu
from reference_model.config import ModelConfig
from reference_model.formats import multiplied_as, weights_of
from reference_model.trace import OperatorTemplate, OperatorTrace
from simulator.scenario.inputs import RecipeName

FP8 = "fp8_e4m3"
BF16 = "bfloat16"
NVFP4 = "fp4_e2m1"
_PRODUCTS = frozenset({"gemm", "grouped_gemm", "masked_grouped_gemm", "grouped_gemm_weight_grad"})
_WEIGHT_ONLY = frozenset({"w4a16_g32", "w4a16_g128"})
_SENDS = frozenset({"moe.dispatch_send"})
"""Kernels that cast what they send where it is quantised, and send it either way."""
_INDEXED = frozenset(
    f"attention.indexer.{name}" for name in ("quantize_q", "append_cache", "scores")
)
"""What makes the scores of an indexer, FP8 like the cache of its keys in every recipe."""


@dataclass(frozen=True, slots=True)
class PrecisionRecipe:
    """The types of a model's products, by the class of their weights."""

    label: str
    """As texts name it."""
    attention: str
    """Projections to the latents and from them to the heads."""
    output: str
    """Output projection of attention."""
    feed_forward: str
    """Of dense layers and shared experts."""
    experts: str
    """Routed experts; tokens travel to them as these read them."""
    prediction: str | None = None
    """All products of the multi-token prediction module; None where it is as other layers."""

    @property
    def types(self) -> frozenset[str]:
        """All types of products."""
        classes = (self.attention, self.output, self.feed_forward, self.experts)
        return frozenset((*classes, *((self.prediction,) if self.prediction else ())))

    @property
    def dispatched(self) -> str:
        """Type in which tokens travel to their experts."""
        return activations_of(self.experts)

    @property
    def of_prediction(self) -> PrecisionRecipe:
        """The recipe inside the multi-token prediction module."""
        one = self.prediction
        if one is None:
            return self
        return replace(self, attention=one, output=one, feed_forward=one, experts=one)

    def product(self, operator: str) -> str:
        """Type of a product, or of the one that an operator works for, by its name."""
        part = operator.partition(".")[0]
        if part == "attention":
            return self.output if operator.startswith("attention.o_proj") else self.attention
        return self.experts if part in ("experts", "moe") else self.feed_forward


RECIPES: Mapping[RecipeName, PrecisionRecipe] = {
    "fp8": PrecisionRecipe("FP8 in blocks of 128 x 128", FP8, FP8, FP8, FP8),
    "bfloat16": PrecisionRecipe("BF16", BF16, BF16, BF16, BF16),
    # Kimi-K2-Thinking and Kimi-K2.5, quantization_config: attention, dense layers and shared
    # experts are among what it ignores.
    "int4": PrecisionRecipe(
        "INT4 experts in groups of 32, else BF16", BF16, BF16, BF16, "w4a16_g32"
    ),
    "int4_128": PrecisionRecipe(
        "INT4 experts in groups of 128, else BF16", BF16, BF16, BF16, "w4a16_g128"
    ),
    "fp8_per_tensor": PrecisionRecipe("FP8 per tensor", *["fp8_e4m3_tensor"] * 4),
    # nvidia/GLM-5-NVFP4, hf_quant_config.json: attention is excluded.
    "nvfp4": PrecisionRecipe("NVFP4 feed-forwards, else BF16", BF16, BF16, NVFP4, NVFP4, BF16),
    # nvidia/DeepSeek-V3.1-NVFP4, hf_quant_config.json: all of attention but its output projection,
    # and the prediction module, are excluded.
    "nvfp4_o_proj": PrecisionRecipe(
        "NVFP4 feed-forwards and output projection, else BF16", BF16, NVFP4, NVFP4, NVFP4, BF16
    ),
    "mxfp8": PrecisionRecipe("MXFP8 in blocks of 32", *["mxfp8_e4m3"] * 4),
}
"""Recipes by the name that a job's `recipe` gives."""

TRAINED: tuple[RecipeName, ...] = ("fp8", "bfloat16", "mxfp8")
"""Those of training."""


def recipe_name(stated: RecipeName | None, config: ModelConfig) -> RecipeName:
    """The recipe of a serving job: the stated one, else that of the model's file."""
    return stated or cast(RecipeName, config.recipe)


def activations_of(product: str) -> str:
    """Type of what streams through a product of a type."""
    return BF16 if product in _WEIGHT_ONLY else product


def weight_bytes_of(product: str) -> float:
    """Bytes of one weight of a product of a type, its share of scales included."""
    return weights_of(product).bytes_per_value


def recorded_as(name: RecipeName, job: str) -> str:
    """The recipe that a recording has, from which that of a recipe follows."""
    return "bfloat16" if (job, name) == ("train", "bfloat16") else "fp8"


def in_recipe(trace: OperatorTrace, name: RecipeName) -> OperatorTrace:
    """A trace recorded as `recorded_as` has it, with the operators of a recipe.

    What layers keep for their backward has the bytes of FP8 with a scale of four bytes for 128
    values, as many as those of MXFP8 with one for 32.
    """
    if trace.recipe == name:
        return trace
    recipe = RECIPES[name]
    templates = {}
    for (layer, phase), section in trace.templates.items():
        within = recipe.of_prediction if layer == "mtp" else recipe
        found = (_converted(template, within) for template in section)
        templates[layer, phase] = tuple(template for template in found if template is not None)
    return replace(trace, recipe=name, templates=templates)


def _converted(template: OperatorTemplate, recipe: PrecisionRecipe) -> OperatorTemplate | None:
    """An operator of an FP8 recording in another recipe, None where that has none."""
    if FP8 not in (template.dtype, template.out_dtype) or template.name in _INDEXED:
        return template
    product = recipe.product(template.name)
    if template.kind in _PRODUCTS:
        return replace(template, dtype=product)
    streamed = activations_of(product)
    if template.kind == "quantize" and streamed == BF16 and template.name not in _SENDS:
        return None
    if template.kind == "transpose" and streamed == "mxfp8_e4m3":
        # Blocks lie along rows, so that a weight is cast along either dimension beforehand.
        return None
    types = {FP8: streamed}
    return replace(
        template,
        dtype=types.get(template.dtype, template.dtype),
        out_dtype=types.get(template.out_dtype, template.out_dtype),
    )


def check_multiplied(
    name: RecipeName,
    gpu: GpuProfile,
    *,
    field: str,
    allowed: Collection[RecipeName],
) -> None:
    """Raise ValueError, with what the GPU can do and which can do this, where a GPU's tensor cores
    do not multiply a type of the recipe."""
    missing = sorted(multiplied_as(dtype) for dtype in _not_multiplied(name, gpu))
    if missing:
        here = [other for other in allowed if multiplies(other, gpu)]
        gpus = [other for other in known_profiles("gpus") if multiplies(name, load_gpu(other))]
        raise ValueError(
            f"{field} {name}: the tensor cores of {gpu.name} do not multiply {', '.join(missing)}; "
            f"allowed on it: recipe {', '.join(here)}; GPUs that do: {', '.join(gpus)}"
        )


def multiplies(name: RecipeName, gpu: GpuProfile) -> bool:
    """Whether a GPU's tensor cores multiply every type of a recipe."""
    return not _not_multiplied(name, gpu)


def _not_multiplied(name: RecipeName, gpu: GpuProfile) -> list[str]:
    return [dtype for dtype in RECIPES[name].types if multiplied_as(dtype) not in gpu.peak_compute]
