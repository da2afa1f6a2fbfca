"""The file of a training scenario of one's own, from a few numbers.

What a flag states is what the file says. The rest are values that another job would also begin
with, each with a comment and its source, to be changed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from hardware_profiles.fields import GIVEN
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


def starting_training(
    *,
    model: str,
    batch: int,
    sequence: int,
    gpu: str | None = None,
    gpus: int | None = None,
    cluster: str | None = None,
    calibration: str | None = None,
    recipe: str,
    layout: Mapping[str, object],
    where: str,
) -> tuple[str, Scenario]:
    """The file of a training scenario, with a comment on every line, and what it says.

    Args:
        batch: sequences of one optimizer step.
        sequence: tokens of one sequence.
        gpu: shipped GPU, a short name, or a path; None where a cluster is named.
        cluster: shipped or a path; None for the shipped one that is nearest, with so many GPUs.
        calibration: None for the nearest that holds kernels of training.
        layout: {field of LAYOUT: value}
        where: what messages call the command.

    Raises:
        ValueError: neither a cluster nor a GPU with their number, or a value that no job can have.
    """
    machine, profile = _machine(gpu, gpus, cluster, where)
    config = load_model_config(model)
    calibration = calibration or nearest_calibration(profile.node.gpu, "training")
    stated = {name: layout.get(name, usual) for name, (usual, _, _) in LAYOUT.items()}
    shown = [
        name
        for name, value in stated.items()
        if name in _ALWAYS or name in layout or value != LAYOUT[name][0]
    ]
    sources = {name: GIVEN if name in layout else LAYOUT[name][2] for name in shown}
    name = Path(model).stem
    shown_name, named = on_one_line(name), profile.node.gpu.name
    text = "\n".join(
        [
            f"# One optimizer step of {shown_name} on {profile.gpus} {on_one_line(named)}: "
            f"{batch} sequences of {sequence} tokens.",
            "# dsv3sim run FILE runs it; dsv3sim plan training --from FILE looks for its layout.",
            "description: " + on_one_line(f"{name} training step on {profile.gpus} {named}"),
            f"model: {on_one_line(model)}  "
            f"# {config.num_hidden_layers} layers; or a path to a config.json",
            *machine,
            f"calibration: {on_one_line(calibration)}  # kernel times, of its GPU or restated",
            "",
            "training:",
            f"  global_batch_sequences: {batch}  # of one step, over all pipelines",
            f"  sequence_length: {sequence}  # tokens",
            *(f"  {each}: {on_one_line(stated[each])}  # {LAYOUT[each][1]}" for each in shown),
            f"  recipe: {on_one_line(recipe)}  # precision of the products: fp8, bfloat16, mxfp8",
            "  communication_sms: 20  # SMs that dispatch and combine keep from "
            "compute beside them",
            "  blocking_sends: false  # whether a GPU waits for its pipeline sends",
            "  skew: bias_balanced  # what makes ranks wait; none for ideal ranks",
            "  memory:",
            "    reserved: 4 GiB  # of a GPU, beside what the job itself needs",
            "    sources:",
            '      reserved: "assumed: CUDA context, NCCL and all-to-all buffers"',
            "  sources:",
            f"    global_batch_sequences: {GIVEN}",
            f"    sequence_length: {GIVEN}",
            *(f"    {each}: {quoted(source)}" for each, source in sources.items() if source),
            "    communication_sms: arXiv 2412.19437, section 3.2.2",
            '    blocking_sends: "assumed: sends run beside compute, as in Megatron-LM"',
            '    skew: "assumed: real data, balanced by biases as in arXiv 2412.19437"',
        ]
    )
    return text + "\n", scenario_from(name, yaml.safe_load(text), (), where=where)


def _machine(
    gpu: str | None, gpus: int | None, cluster: str | None, where: str
) -> tuple[list[str], ClusterProfile]:
    """Lines of a file that say on what the job runs, and what they say."""
    if cluster is None and (gpu is None or gpus is None):
        raise ValueError(
            f"{where}: neither --cluster nor both of --gpu and --gpus; allowed: "
            "--gpu h100 --gpus 512, or --cluster with a shipped name or a path"
        )
    if cluster is not None and gpu is not None:
        raise ValueError(f"{where}: --gpu and --cluster; allowed: one, a cluster has its GPU")
    if cluster is not None:
        name, found = cluster, load_cluster(cluster)
        own_gpu, profile = read_profile("clusters", name)[0]["node"]["gpu"], found.node.gpu
    else:
        assert gpu is not None
        assert gpus is not None
        own_gpu = gpu_named(gpu)
        profile = load_gpu(own_gpu)
        name = nearest_cluster(profile, gpus)
        found = load_cluster(name)
    if gpus in (None, found.gpus) and found.node.gpu.name == profile.name:
        size = f"{found.nodes} nodes of {found.node.gpus} GPUs"
        return [f"cluster: {on_one_line(name)}  # {size}"], found
    assert gpus is not None
    own = Path(f"{name}_of_{gpus}.yaml")
    text, found = starting_cluster(own, gpu=own_gpu, gpus=gpus, given={}, like=name)
    return ["cluster:", *(f"  {line}" for line in text.splitlines())], found
