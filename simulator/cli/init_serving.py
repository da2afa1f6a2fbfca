"""dsv3sim init serving: a fleet of one's own from a few flags."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.completion import cluster_names, gpu_names
from simulator.cli.init import NewFile, check_new, init_app, write_new
from simulator.cli.options import Model
from simulator.cli.service import (
    Cached,
    KvCacheOption,
    LengthCv,
    OutputOption,
    Prompt,
    Rate,
    RecipeOption,
    Tpot,
    Ttft,
    service_of,
)

if TYPE_CHECKING:
    from simulator.scenario.starting_serving import Pool, Service


@init_app.command("serving")
def init_serving(
    path: NewFile,
    rate: Rate,
    prompt: Prompt,
    output: OutputOption,
    gpu: Annotated[
        str | None,
        typer.Option(help="A shipped GPU, h200 for short; or --cluster.", autocompletion=gpu_names),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A shipped cluster, or a file of dsv3sim init cluster.",
            autocompletion=cluster_names,
        ),
    ] = None,
    prefill: Annotated[
        str | None,
        typer.Option(metavar="NxGPUS", help="Instances that compute prompts: 4x32, 4x8tp."),
    ] = None,
    decode: Annotated[
        str | None, typer.Option(metavar="NxGPUS", help="Instances that decode: 2x64.")
    ] = None,
    colocated: Annotated[
        str | None,
        typer.Option(
            metavar="NxGPUS",
            help="Instances that do both, in the place of the two; default: 1x8tp, of a node's "
            "GPUs. tp: heads and experts are split over the GPUs; else whole experts are spread.",
        ),
    ] = None,
    model: Model = "deepseek_v3",
    ttft: Ttft = "2 s",
    tpot: Tpot = "50 ms",
    length_cv: LengthCv = 0.0,
    cached: Cached = 0.0,
    recipe: RecipeOption = None,
    kv_cache: KvCacheOption = "bfloat16",
) -> None:
    """A service: its requests by rate and lengths, and the instances that serve them."""
    from simulator.execution.fleet.simulation import prepare_fleet
    from simulator.scenario.files import scenario_from
    from simulator.scenario.starting_serving import (
        fleet_scenario,
        fleet_text,
        serving_machine,
    )

    check_new(path)
    service = service_of(
        serving_machine(gpu=gpu, cluster=cluster),
        model=model,
        rate=rate,
        prompt=prompt,
        output=output,
        length_cv=length_cv,
        cached=cached,
        ttft=ttft,
        tpot=tpot,
        recipe=recipe,
        kv_cache=kv_cache,
    )
    given = {"prefill": prefill, "decode": decode, "colocated": colocated}
    if not any(given.values()):
        given["colocated"] = f"1x{service.machine.node_gpus}tp"
    pools = [
        _pool(service, role, text, f"--{role} {text}")
        for role, text in given.items()
        if text is not None
    ]
    asked = f"{rate:g} requests/s of {prompt:,} tokens in, {output:,} out"
    served = ", ".join(f"{role} {text}" for role, text in given.items() if text is not None)
    raw = fleet_scenario(service, pools, description=f"{model}, {asked}: {served}")
    prepare_fleet(scenario_from(path.stem, raw, (), where=str(path)))  # raises what a run would
    head = (
        f"Written by dsv3sim init serving. Run it: dsv3sim run {path}",
        "Every field of a pool may be changed; so may what a step's changes say of its deployment.",
    )
    write_new(path, fleet_text(raw, head))
    print(f"{path}: {asked}; run it with dsv3sim run {path}")


def _pool(service: Service, role: str, text: str, where: str) -> Pool:
    """The pool that NxGPUS says: expert parallelism, or tp for all split over the GPUs."""
    from simulator.scenario.starting_serving import starting_pool

    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(tp)?", text)
    if found is None:
        raise ValueError(
            f"init serving: {where}: allowed: instances x GPUs of each, such as 4x32, or 4x8tp for "
            "heads and experts split over the GPUs"
        )
    return starting_pool(
        service, role, instances=int(found[1]), gpus=int(found[2]), split=bool(found[3])
    )
