"""Options that say what a service is: its model, machine, requests and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulator.scenario.starting_serving import Service, ServingMachine

Rate = Annotated[float | None, typer.Option(help="Requests per second, Poisson.")]
Prompt = Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")]
OutputOption = Annotated[int, typer.Option(min=1, help="Tokens of an answer.")]
LengthCv = Annotated[
    float,
    typer.Option(
        min=0.0, help="Spread of both lengths, standard deviation over mean; 0: all are alike."
    ),
]
Cached = Annotated[
    float, typer.Option(min=0.0, max=0.99, help="Share of every prompt that a prefix cache holds.")
]
Ttft = Annotated[str, typer.Option(help="Limit of the time to the first token.")]
Tpot = Annotated[str, typer.Option(help="Limit of the time per token after it.")]
RecipeOption = Annotated[
    str | None, typer.Option(help="Types of weights and products; default: the model's own.")
]
KvCacheOption = Annotated[str, typer.Option(help="bfloat16 or fp8_e4m3.")]


def service_of(
    machine: ServingMachine,
    *,
    model: str,
    rate: float | None,
    prompt: int,
    output: int,
    length_cv: float,
    cached: float,
    ttft: str,
    tpot: str,
    recipe: str | None,
    kv_cache: str,
    requests: str | None = None,
    trace_format: str | None = None,
) -> Service:
    """The service that the options say.

    Args:
        requests: a fleet scenario whose requests are taken, or the file of a trace.
        trace_format: of that file.

    Raises:
        ValueError: an unknown model, a limit that is no time, or no rate.
    """
    from hardware_profiles.units import parse_quantity
    from reference_model.config import load_model_config
    from simulator.scenario.inputs import full_recipe_name
    from simulator.scenario.serving import KV_CACHES
    from simulator.scenario.starting_serving import service_by_flags

    if requests is None and rate is None:
        raise ValueError("--rate is missing; allowed: requests per second, such as --rate 10")
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"--rate {rate}: allowed: requests per second, more than 0")
    if trace_format is not None and requests is None:
        raise ValueError(f"--format {trace_format}: allowed: with --requests, the trace's file")
    if kv_cache not in KV_CACHES:
        raise ValueError(f"--kv-cache {kv_cache}: allowed: {' or '.join(KV_CACHES)}")
    limits = {"--ttft": ttft, "--tpot": tpot}
    seconds = {name: parse_quantity(text, "time", name) for name, text in limits.items()}
    for name, value in seconds.items():
        if value <= 0:
            raise ValueError(f"{name} {limits[name]}: allowed: more than 0, such as '50 ms'")
    config = load_model_config(model)
    types = full_recipe_name(recipe)
    if requests is not None:
        from simulator.analysis.plan.serving import service_by_requests

        return service_by_requests(
            requests,
            trace_format,
            rate=rate,
            model=model,
            config=config,
            machine=machine,
            ttft_s=seconds["--ttft"],
            tpot_s=seconds["--tpot"],
            recipe=types,
            kv_cache=kv_cache,
        )
    assert rate is not None
    return service_by_flags(
        model=model,
        config=config,
        machine=machine,
        rate=rate,
        prompt=prompt,
        output=output,
        length_cv=length_cv,
        cached=cached,
        ttft_s=seconds["--ttft"],
        tpot_s=seconds["--tpot"],
        recipe=types,
        kv_cache=kv_cache,
    )
