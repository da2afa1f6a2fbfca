"""Operator traces that the package ships: a model config and a job in, the OperatorTrace out."""

from pathlib import Path

import reference_model
from reference_model.config import ModelConfig
from reference_model.trace import OperatorTrace, load_trace

TRACES = Path(reference_model.__file__).parent / "traces"
"""Folder of the shipped operator traces."""


def shipped_trace(model: ModelConfig, job: str) -> OperatorTrace:
    """The operator trace recorded for layers like this model's and a job ("train").

    Raises:
        ValueError: none of the shipped traces was recorded from such layers.
    """
    known = []
    for path in sorted(TRACES.glob(f"*.{job}.jsonl")):
        trace = load_trace(path)
        if trace.config_digest == model.layer_digest:
            return trace
        known.append(trace.model)
    raise ValueError(
        f"model: no {job} trace was recorded from this config; recorded: {', '.join(known)}; "
        "record one with: python -m reference_model trace"
    )
