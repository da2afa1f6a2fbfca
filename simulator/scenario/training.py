"""TrainingJob: the work of one optimizer step, as a scenario file states it."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from hardware_profiles.estimates import TimeEstimate
from hardware_profiles.fields import Profile, TimeValue
from simulator.scenario.documents import Documents
from simulator.scenario.inputs import (
    Experts,
    Memory,
    Prior,
    Skew,
    TrainingSkew,
    full_recipe_name,
)


def schedule_name(name: str) -> str:
    """The name of a schedule that DeepSeek's papers call otherwise: ZB1P is ZB-H1."""
    return "zb_h1" if name == "zb1p" else name


def _one_layout(given: object) -> object:
    """A text that names every stage by itself."""
    return (given,) if isinstance(given, str) and "|" in given else given


Float = Literal["float32", "bfloat16"]
LayoutAxis = Literal["tensor", "context", "expert", "data", "pipeline"]


class OptimizerTypes(Profile):
    """The optimizer, and the types of what it keeps; by default those of arXiv 2412.19437, section
    3.3.3."""

    name: str = "adamw"
    """The optimizer, by name; an unknown one is answered with all."""
    master: Float = "float32"
    """Of the weights that the optimizer updates, beside those that compute."""
    gradients: Float = "float32"
    """As accumulated over a step's micro-batches and reduced over its ranks."""
    moments: Float = "bfloat16"
    """Of its moments, AdamW's first and second."""
    post_validation: bool = False
    """Whether each rank updates as soon as its own gradients are reduced and checks the norm of all
    afterwards, undoing a step that should have been clipped (arXiv 2401.10241, section 4). Ranks
    then need not begin a step together, which ZB-H2 and ZBV gain from; steps undone are not
    counted. Otherwise every rank waits for the norm."""
    iterations: PositiveInt = 5
    """Of Newton and Schulz, with which Muon orthogonalises a matrix."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: master weights and moments lie in CPU memory. Gradients of a GPU's shard go there over
    PCIe, the CPU updates, and BF16 parameters come back (arXiv 2101.06840, section 4)."""
    cpu_efficiency: Prior = Prior(
        value=0.46,
        low=0.35,
        high=0.8,
        source="arXiv 2101.06840, table 4, from memory: CPU-Adam updates 10 billion parameters in "
        "2.57 s, 30 bytes each, on two Xeon 8168 with 256 GB/s together; ends assumed",
    )
    """Rate at which the CPU moves the bytes of an update over the peak of its memory; 1 without
    skew."""
    efficiency: Prior = Prior(
        value=1.0,
        low=0.9,
        high=1.4,
        source="the reference model's fused kernel is what is measured; another framework's may "
        "reach the rate of an element-wise addition, 1.4 of it on an H200; low end assumed",
    )
    """Rate at which it moves its bytes over that of the reference model's own; 1 without skew."""


class TrainingJob(Profile):
    """One optimizer step of a pipeline-, data- and expert-parallel run."""

    schedule: Annotated[str, AfterValidator(schedule_name)]
    """gpipe, 1f1b, 1f1b_overlapped, interleaved, interleaved_overlapped, zb_h1 ("zb1p" is read as
    it), zb_h2, zbv, dualpipe or dualpipev; or the path of a file in the form that `dsv3sim show
    schedule` prints."""
    virtual_stages: PositiveInt | Literal["default"] = "default"
    """Pipeline stages on each rank of the interleaved schedules, by default 2, and of zb_h1, by
    default 1."""
    pp: PositiveInt
    """Ranks of a pipeline."""
    ep: PositiveInt
    """GPUs that share the routed experts of a layer."""
    global_batch_sequences: PositiveInt
    """Sequences of one step, over all pipelines."""
    micro_batch_sequences: PositiveInt
    """Sequences of one micro-batch of one pipeline."""
    sequence_length: PositiveInt
    """Tokens of one sequence."""
    documents: Documents | None = None
    """Lengths of the documents that sequences are packed from, where attention keeps to them. Its
    work is theirs on average; ranks wait for each other's documents where there is skew."""
    context_parallel: PositiveInt = 1
    """GPUs that share the tokens of a sequence; each attends to all tokens before its own."""
    tensor_parallel: PositiveInt = 1
    """GPUs that share the heads, feed-forwards and vocabulary of each layer, and between those the
    tokens (sequence parallelism)."""
    expert_tensor_parallel: PositiveInt = 1
    """GPUs that share the width of each routed expert."""
    axes: tuple[LayoutAxis, ...] = ("tensor", "context", "expert", "data", "pipeline")
    """Which GPUs lie next to each other, and so in one NVLink domain: those of the first axis are
    consecutive, those of the last are farthest apart."""
    communication_sms: NonNegativeInt
    """SMs that dispatch and combine kernels keep while a chunk overlaps them with compute.

    0: copy engines and NICs move the tokens. Links alone limit the transfers, compute has every SM,
    and what a transfer slows and waits for beside compute stays as calibrated; no kernel of that
    kind was measured, so these times are extrapolated."""
    recipe: Annotated[Literal["fp8", "bfloat16", "mxfp8"], BeforeValidator(full_recipe_name)] = (
        "fp8"
    )
    """Precision of the products and of what they keep: fp8 in blocks of 128 x 128, bfloat16 ("bf16"
    is read as it), or mxfp8 in blocks of 32."""
    recompute: Literal["published", "none", "attention", "layer"] = "published"
    """What the backward of a layer computes again in the place of keeping it. published: norms, the
    up-projection of latent attention and SwiGLU (arXiv 2412.19437, section 3.2.3). none: SwiGLU
    alone. attention: what is published, and the attention core. layer: all but the combine that
    ends it. A layer of `stages` may say otherwise: "4 moe/layer"."""
    optimizer: OptimizerTypes = OptimizerTypes()
    """The optimizer, and the types of what it keeps; by default those of arXiv 2412.19437, section
    3.3.3."""
    ema: Literal["none", "float32", "bfloat16"] = "none"
    """Type of the exponential moving average of the parameters that CPU memory keeps; the CPU
    updates it while the next step runs (arXiv 2412.19437, section 3.2.3)."""
    zero: Literal[0, 1, 2, 3] = 1
    """Stage of ZeRO: what GPUs with the same parameters share out. 0: nothing. 1: master weights
    and moments. 2: and gradients, then reduced in every micro-batch. 3 (FSDP): and parameters, then
    gathered in every forward and backward."""
    gradient_reduction: Literal["exposed", "overlapped"] = "exposed"
    """exposed: after the last micro-batch, or from stage 2 on after each layer, beside nothing.
    overlapped: of a layer while the next one computes its backward."""
    parameter_gather: Literal["exposed", "overlapped"] = "exposed"
    """exposed: after the update, or in stage 3 before each layer, beside nothing. overlapped: of a
    layer while the one before computes; in stages 1 and 2 in the next step's first forward."""
    stages: Annotated[tuple[str, ...] | Literal["default"], BeforeValidator(_one_layout)] = (
        "default"
    )
    """Layers of each stage of the schedule, e.g. "embedding + 3 dense + 1 moe", "14 x (4 moe)", or
    one text as Megatron-LM's pipeline layout: "Et*3|(tt|)*29,m|L". "default": the split whose step
    is shortest of those that fit memory."""
    experts: Experts = Experts()
    """Redundant ones are further copies of the first routed experts."""
    skew: TrainingSkew = Skew.model_validate("bias_balanced")
    """What makes ranks wait for each other: rows, clocks, work and hosts that are not alike."""
    lone_chunks_keep_sms: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability that products of chunks outside overlapped pairs leave the communication SMs free
    as well, a setting that nobody publishes; 0 without skew."""
    immediate_weights: tuple[str, ...] | Literal["fitting"] = "fitting"
    """Matrices whose weight gradient an input-only backward computes immediately, e.g. "head.proj",
    instead of keeping its operands for a W chunk. "fitting": as few as memory requires, first those
    that would keep most bytes per FLOP."""
    host_launch: TimeValue = 0.0
    """Time that the host takes to launch one kernel; 0 where a CUDA graph launches all at once."""
    blocking_sends: bool
    """Whether a rank waits for its pipeline sends before its next action."""
    memory: Memory
    """What fills the memory of a GPU beside weights and what a job works on."""
    gap: TimeEstimate
    """Idle time between two kernels of one stream; the calibration's where a file has none."""

    @model_validator(mode="after")
    def _places_experts_once(self) -> Self:
        rows = self.skew.rows
        if rows.drift is not None or rows.placed_for is not None:
            raise ValueError(
                "skew.rows: drift and placed_for: a training job places its experts once; allowed: "
                "without them, or another form, as in the setting bias_balanced"
            )
        return self

    @model_validator(mode="after")
    def _gathers_what_it_shares(self) -> Self:
        if self.zero == 0 and self.parameter_gather == "overlapped":
            raise ValueError(
                "parameter_gather: overlapped: with zero 0 every GPU updates all of its parameters "
                "and gathers none; allowed: exposed, or zero from 1 to 3"
            )
        return self

    @property
    def state_overlapped(self) -> tuple[bool, bool]:
        """Whether gradients are reduced, and parameters gathered, beside compute."""
        return self.gradient_reduction == "overlapped", self.parameter_gather == "overlapped"

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one GPU, between what is split over GPUs that share layers."""
        sharing = self.context_parallel * self.tensor_parallel
        return self.micro_batch_sequences * self.sequence_length // sharing

    @property
    def step_tokens(self) -> int:
        return self.global_batch_sequences * self.sequence_length
