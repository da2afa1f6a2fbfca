"""The file of a training scenario of one's own, from a few numbers.

What a flag states is what the file says. The rest are values that another job would also begin
with, each with a comment and its source, to be changed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hardware_profiles.profile_files import read_profile
from hardware_profiles.schema import ClusterProfile, load_cluster, load_gpu
from reference_model.config import load_model_config
from simulator.scenario.commented import on_one_line
from simulator.scenario.files import Scenario, scenario_from
from simulator.scenario.starting_hardware import (
    gpu_named,
    nearest_calibration,
    nearest_cluster,
    quoted,
    starting_cluster,
)

_FLAG = "given to dsv3sim"

LAYOUT: Mapping[str, tuple[object, str, str]] = {
    "schedule": (
        "1f1b",
        "order of a pipeline's micro-batches; dsv3sim show schedules names all",
        "chosen: takes any number of micro-batches",
    ),
    "virtual_stages": ("default", "pipeline stages on each GPU of interleaved schedules", ""),
    "pp": (1, "GPUs of a pipeline", "chosen: no pipeline"),
    "ep": (1, "GPUs that share the routed experts of a layer", "chosen: whole layers"),
    "tensor_parallel": (1, "GPUs that share each layer", ""),
    "expert_tensor_parallel": (1, "GPUs that share each routed expert", ""),
    "context_parallel": (1, "GPUs that share each sequence", ""),
    "micro_batch_sequences": (
        1,
        "sequences that one pass through the pipeline works on",
        "chosen: the fewest, which needs least memory",
    ),
    "zero": (
        1,
        "what copies of parameters share out: 1 optimizer, 2 gradients, 3 parameters",
        "arXiv 2412.19437, section 3.1",
    ),
    "recompute": ("published", "what the backward computes again: none, attention, layer", ""),
}
"""{field: (value where none is given, what it is, source of that value)} of what a layout says."""

_ALWAYS = ("schedule", "pp", "ep", "micro_batch_sequences", "zero")
"""Of them, those that a file says even where they are as by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWish:
    """What a user says of a training job."""

    model: str
    batch: int
    """Sequences of one optimizer step."""
    sequence: int
    """Tokens of one sequence."""
    gpu: str | None = None
    """Shipped GPU, a short name, or a path; None where a cluster is named."""
    gpus: int | None = None
    cluster: str | None = None
    """Shipped cluster or path; None for the shipped one that is nearest, with so many GPUs."""
    calibration: str | None = None
    """None for the nearest that holds kernels of training."""
    recipe: str = "fp8"
    reserved: str = "4 GiB"
    layout: Mapping[str, object] = field(default_factory=dict)
    """{field of LAYOUT: value}"""


def starting_training(wish: TrainingWish, *, where: str) -> tuple[str, Scenario]:
    """The file of a training scenario, with a comment on every line, and what it says.

    Args:
        where: what messages call the command.

    Raises:
        ValueError: neither a cluster nor a GPU with their number, or a value that no job can have.
    """
    machine, cluster = _machine(wish, where)
    model = load_model_config(wish.model)
    calibration = wish.calibration or nearest_calibration(cluster.node.gpu, "training")
    stated = {name: wish.layout.get(name, usual) for name, (usual, _, _) in LAYOUT.items()}
    shown = [
        name
        for name, value in stated.items()
        if name in _ALWAYS or name in wish.layout or value != LAYOUT[name][0]
    ]
    sources = {name: _FLAG if name in wish.layout else LAYOUT[name][2] for name in shown}
    name = Path(wish.model).stem
    shown_name, gpu = on_one_line(name), cluster.node.gpu.name
    text = "\n".join(
        [
            f"# One optimizer step of {shown_name} on {cluster.gpus} {on_one_line(gpu)}: "
            f"{wish.batch} sequences of {wish.sequence} tokens.",
            "# dsv3sim run FILE runs it; dsv3sim plan training --from FILE looks for its layout.",
            "description: " + on_one_line(f"{name} training step on {cluster.gpus} {gpu}"),
            f"model: {on_one_line(wish.model)}  "
            f"# {model.num_hidden_layers} layers; or a path to a config.json",
            *machine,
            f"calibration: {on_one_line(calibration)}  # measured kernel times",
            "",
            "training:",
            f"  global_batch_sequences: {wish.batch}  # of one step, over all pipelines",
            f"  sequence_length: {wish.sequence}  # tokens",
            *(f"  {each}: {on_one_line(stated[each])}  # {LAYOUT[each][1]}" for each in shown),
            f"  recipe: {on_one_line(wish.recipe)}  "
            "# precision of the products: fp8, bfloat16, mxfp8",
            "  communication_sms: 20  # SMs that dispatch and combine keep from "
            "compute beside them",
            "  blocking_sends: false  # whether a GPU waits for its pipeline sends",
            "  skew: bias_balanced  # what makes ranks wait; none for ideal ranks",
            "  memory:",
            f"    reserved: {on_one_line(wish.reserved)}  "
            "# of a GPU, beside what the job itself needs",
            "    sources:",
            '      reserved: "assumed: CUDA context, NCCL and all-to-all buffers"',
            "  sources:",
            f"    global_batch_sequences: {_FLAG}",
            f"    sequence_length: {_FLAG}",
            *(f"    {each}: {quoted(source)}" for each, source in sources.items() if source),
            "    communication_sms: arXiv 2412.19437, section 3.2.2",
            '    blocking_sends: "assumed: sends run beside compute, as in Megatron-LM"',
            '    skew: "assumed: real data, balanced by biases as in arXiv 2412.19437"',
        ]
    )
    return text + "\n", scenario_from(name, yaml.safe_load(text), (), where=where)


def _machine(wish: TrainingWish, where: str) -> tuple[list[str], ClusterProfile]:
    """Lines of a file that say on what the job runs, and what they say."""
    if wish.cluster is None and (wish.gpu is None or wish.gpus is None):
        raise ValueError(
            f"{where}: neither --cluster nor both of --gpu and --gpus; allowed: "
            "--gpu h100 --gpus 512, or --cluster with a shipped name or a path"
        )
    if wish.cluster is not None and wish.gpu is not None:
        raise ValueError(f"{where}: --gpu and --cluster; allowed: one, a cluster has its GPU")
    if wish.cluster is not None:
        name, cluster = wish.cluster, load_cluster(wish.cluster)
        gpu, profile = read_profile("clusters", name)[0]["node"]["gpu"], cluster.node.gpu
    else:
        assert wish.gpu is not None
        assert wish.gpus is not None
        gpu = gpu_named(wish.gpu)
        profile = load_gpu(gpu)
        name = nearest_cluster(profile, wish.gpus)
        cluster = load_cluster(name)
    if wish.gpus in (None, cluster.gpus) and cluster.node.gpu.name == profile.name:
        size = f"{cluster.nodes} nodes of {cluster.node.gpus} GPUs"
        return [f"cluster: {on_one_line(name)}  # {size}"], cluster
    assert wish.gpus is not None
    own = Path(f"{name}_of_{wish.gpus}.yaml")
    text, cluster = starting_cluster(own, gpu=gpu, gpus=wish.gpus, given={}, like=name)
    return ["cluster:", *(f"  {line}" for line in text.splitlines())], cluster
