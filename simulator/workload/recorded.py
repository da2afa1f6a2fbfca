"""The operator traces that ship with the package, by model, job and recipe."""

from pathlib import Path

import reference_model
from reference_model.config import ModelConfig
from reference_model.trace import OperatorTrace, load_trace

TRACES = Path(reference_model.__file__).parent / "traces"
"""Folder of the shipped operator traces."""


def shipped_trace(model: ModelConfig, job: str, recipe: str = "fp8") -> OperatorTrace:
    """The operator trace recorded for layers like this model's, a job and a precision recipe.

    A trace says itself what it is of; the name of its file narrows the search only.

    Raises:
        ValueError: none of the shipped traces was recorded from such layers, or not in the recipe.
    """
    recorded: list[OperatorTrace] = []
    other_recipes: list[OperatorTrace] = []
    for path in sorted(TRACES.glob(f"*.{job}*.jsonl")):
        trace = load_trace(path)
        alike = (trace.job, trace.config_digest) == (job, model.layer_digest)
        if alike and trace.recipe == recipe:
            return trace
        (other_recipes if alike else recorded).append(trace)
    of_training = job == "train"
    if other_recipes:
        config, known = other_recipes[0].model, other_recipes[0].recipe
        command = f"python -m reference_model trace --config {config} --recipe {recipe}"
        raise ValueError(
            f"model: the {job} trace of this config was recorded in {known}, not in {recipe}"
            + (f"; record one with: {command}" if of_training else f"; allowed: one in {recipe}")
        )
    raise ValueError(
        f"model: no {job} trace was recorded from this config; recorded: "
        f"{', '.join(dict.fromkeys(trace.model for trace in recorded))}; "
        + ("record one with: python -m reference_model trace" if of_training else "allowed: these")
    )
