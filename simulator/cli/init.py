"""dsv3sim init: write a file of one's own to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.completion import (
    calibration_names,
    cluster_names,
    gpu_names,
    schedule_names,
)
from simulator.cli.options import GpuOption, Gpus, Model

init_app = typer.Typer(
    help="Write a short file of your own to start from, with a comment on every line.",
    no_args_is_help=True,
)

NewFile = Annotated[Path, typer.Argument(help="File to write; one that exists is left alone.")]


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet, whole or not at all.

    Raises ValueError where there is one, or where its folder is missing.
    """
    from hardware_profiles.whole_files import write_whole

    check_new(path)
    write_whole(path, text)


def check_new(path: Path) -> None:
    """Raise ValueError for a file that exists, a folder that does not, or another ending."""
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"init: {path}: allowed: a file that ends in .yaml")
    if path.exists():
        raise ValueError(f"init: {path} exists and is left as it is; allowed: a new file's name")
    if not path.parent.is_dir():
        raise ValueError(f"init: {path.parent}: no such folder; allowed: one that exists")


@init_app.command("gpu")
def init_gpu(
    path: NewFile,
    like: Annotated[
        str | None,
        typer.Option(
            help="Shipped GPU that gives what no other option says.", autocompletion=gpu_names
        ),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Such as hopper; default: of --like or the nearest GPU.")
    ] = None,
    sms: Annotated[int | None, typer.Option(min=1, help="Streaming multiprocessors.")] = None,
    clock: Annotated[str | None, typer.Option(help="Of the SMs, such as '1830 MHz'.")] = None,
    bf16: Annotated[str | None, typer.Option(help="Dense peak: '989 TFLOP/s'.")] = None,
    fp8: Annotated[str | None, typer.Option(help="Dense peak: '1979 TFLOP/s'.")] = None,
    fp4: Annotated[str | None, typer.Option(help="Dense peak, where it has one.")] = None,
    memory: Annotated[str | None, typer.Option(help="Capacity: '80 GB'.")] = None,
    hbm: Annotated[str | None, typer.Option(help="Memory bandwidth: '3.35 TB/s'.")] = None,
    l2: Annotated[str | None, typer.Option(help="L2 cache: '50 MiB'.")] = None,
    nvlink: Annotated[str | None, typer.Option(help="Per direction: '450 GB/s'.")] = None,
    pcie: Annotated[str | None, typer.Option(help="Per direction: '64 GB/s'.")] = None,
    power: Annotated[str | None, typer.Option(help="Board limit: '700 W'.")] = None,
) -> None:
    """A GPU that may not exist, from ten numbers; its kernel times are restated."""
    from simulator.scenario.starting_hardware import starting_gpu

    check_new(path)
    given = {
        "sms": sms,
        "clock": clock,
        "bf16": bf16,
        "fp8": fp8,
        "fp4": fp4,
        "memory": memory,
        "hbm": hbm,
        "l2": l2,
        "nvlink": nvlink,
        "pcie": pcie,
        "power": power,
    }
    stated = {option: value for option, value in given.items() if value is not None}
    write_new(path, starting_gpu(path.stem, stated, architecture=architecture, like=like))
    print(f"{path}: run any job on it with --set cluster.node.gpu={path}, or make a cluster of it:")
    print(f"  dsv3sim init cluster my_cluster.yaml --gpu {path} --gpus 512")


@init_app.command("cluster")
def init_cluster(
    path: NewFile,
    gpu: Annotated[
        str,
        typer.Option(help="A shipped GPU, h100 for short, or a path.", autocompletion=gpu_names),
    ],
    gpus: Annotated[int, typer.Option(min=1, help="Of the whole cluster.")],
    like: Annotated[
        str | None,
        typer.Option(
            help="Shipped cluster that gives what no other option says; default: of the GPU.",
            autocompletion=cluster_names,
        ),
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="That share a server.")] = None,
    nvlink_domain: Annotated[
        int | None, typer.Option(min=1, help="GPUs that NVLink joins, as 72 of an NVL72 rack.")
    ] = None,
    nic: Annotated[str | None, typer.Option(help="Line rate of a NIC: '400 Gbit/s'.")] = None,
    nics_per_node: Annotated[int | None, typer.Option(min=1, help="NICs of a server.")] = None,
    topology: Annotated[
        str | None, typer.Option(help="Of the network: fat_tree_2, multi_plane_fat_tree, ...")
    ] = None,
    price: Annotated[str | None, typer.Option(help="Rent of a GPU: '2 USD/h'.")] = None,
) -> None:
    """A cluster: GPUs, servers and their network."""
    from hardware_profiles.schema import load_transport
    from simulator.hardware.network.clusters import cluster_fabric
    from simulator.scenario.starting_hardware import starting_cluster

    check_new(path)
    given = {
        "node.gpus": gpus_per_node,
        "domain": nvlink_domain,
        "node.nic.bandwidth": nic,
        "node.nics": nics_per_node,
        "fabric.topology": topology,
        "gpu_price": price,
    }
    stated = {field: value for field, value in given.items() if value is not None}
    text, cluster = starting_cluster(path, gpu=gpu, gpus=gpus, given=stated, like=like)
    cluster_fabric(cluster, load_transport("ideal"))  # raises where switches have no such room
    write_new(path, text)
    print(f"{path}: run any job on it with --set cluster={path}")


@init_app.command("training")
def init_training(
    path: NewFile,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of one optimizer step.")],
    model: Model = "deepseek_v3",
    sequence: Annotated[int, typer.Option(min=1, help="Tokens of one sequence.")] = 4096,
    gpu: GpuOption = None,
    gpus: Gpus = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A shipped cluster or a path, in the place of --gpu.",
            autocompletion=cluster_names,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Kernel times. Default: of the nearest GPU.", autocompletion=calibration_names
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="fp8, bfloat16 or mxfp8.")] = "fp8",
    pp: Annotated[int | None, typer.Option(min=1, help="GPUs of a pipeline.")] = None,
    ep: Annotated[int | None, typer.Option(min=1, help="GPUs that share experts.")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="GPUs that share a layer.")] = None,
    cp: Annotated[int | None, typer.Option(min=1, help="GPUs that share a sequence.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences of one pass through the pipeline.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Such as 1f1b or dualpipe.", autocompletion=schedule_names)
    ] = None,
    zero: Annotated[int | None, typer.Option(min=0, max=3, help="Stage of ZeRO.")] = None,
    recompute: Annotated[
        str | None, typer.Option(help="published, none, attention or layer.")
    ] = None,
) -> None:
    """A training step: model, GPUs, batch and layout."""
    from simulator.execution.training_run import (
        check_training_names,
        sequences_in_one_round,
        training_layout,
    )
    from simulator.scenario.starting_training import starting_training
    from simulator.scenario.training import TrainingJob

    check_new(path)
    given = {
        "schedule": schedule,
        "pp": pp,
        "ep": ep,
        "tensor_parallel": tp,
        "context_parallel": cp,
        "micro_batch_sequences": micro_batch,
        "zero": zero,
        "recompute": recompute,
    }
    text, scenario = starting_training(
        model=model,
        batch=batch,
        sequence=sequence,
        gpu=gpu,
        gpus=gpus,
        cluster=cluster,
        calibration=calibration,
        recipe=recipe,
        layout={name: value for name, value in given.items() if value is not None},
        where="init training",
    )
    job = scenario.job_as(TrainingJob)
    check_training_names(job, scenario.cluster.node.gpu)  # raises for an unknown schedule
    sequences_in_one_round(job, training_layout(scenario, job))  # raises where GPUs do not divide
    write_new(path, text)
    print(f"{path}: dsv3sim run {path}, or dsv3sim plan training --from {path} for its layout")
