"""Find the operator trace of a model, or record one.

A recording belongs to the shapes of a model's layers, a job, a precision recipe and how many GPUs
share a layer, so that models that differ in nothing else share it. Shipped ones are looked at
first, then those of the user; where there is none and torch is installed, one is recorded in
seconds and kept for the next run.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.whole_files import write_whole
from reference_model.config import ModelConfig
from reference_model.trace import (
    TRACE_FOLDER,
    WHOLE,
    OperatorTrace,
    Split,
    load_trace,
    part_of,
    split_of,
    trace_header,
    trace_name,
    user_trace_folder,
)
from simulator.scenario.inputs import RecipeName
from simulator.workload.recipes import in_recipe, recorded_as

TraceOf = Callable[..., OperatorTrace]
"""`recorded_trace` with its folder chosen: of a model, a job and a recipe (FP8 by default)."""


def traces_in(folder: str | None) -> TraceOf:
    """Traces of the user in a folder, of which None is the usual one."""
    return partial(recorded_trace, folder=None if folder is None else Path(folder))


def recorded_trace(
    model: ModelConfig,
    job: str,
    recipe: RecipeName = "fp8",
    split: Split = WHOLE,
    recompute: str = "published",
    *,
    folder: Path | None = None,
) -> OperatorTrace:
    """The operator trace of a model's layers, a job and a recipe.

    Args:
        split: GPUs that share a layer, in training.
        recompute: what the backward of training recomputes, one of RECOMPUTATIONS.
        folder: with recordings of the user; by default `user_trace_folder()`. What is recorded now
            is written there.

    Raises:
        ValueError: it is neither at hand nor can be recorded here, and the line says how to; or
            GPUs that do not divide what they share.
    """
    part_of(model, split)
    wanted = (model.shape_digest, job, recorded_as(recipe, job), split, recompute)
    path = _found(folder, *wanted) or _record(model, *wanted[1:], folder or user_trace_folder())
    return _as_asked(object_key(load_trace(path)), recipe, bool(model.num_nextn_predict_layers))


@lru_cache(maxsize=32)
def _as_asked(recorded: Keyed[OperatorTrace], recipe: RecipeName, with_mtp: bool) -> OperatorTrace:
    trace = in_recipe(recorded.value, recipe)
    return trace if with_mtp else trace.without_mtp()


def is_recorded(
    model: ModelConfig,
    job: str,
    recipe: RecipeName,
    split: Split,
    recompute: str,
    *,
    folder: Path | None,
) -> bool:
    """Whether `recorded_trace` finds the trace, so that none is to be recorded."""
    wanted = (model.shape_digest, job, recorded_as(recipe, job), split, recompute)
    return _found(folder, *wanted) is not None


def _found(
    folder: Path | None, digest: str, job: str, recipe: str, split: Split, recompute: str
) -> Path | None:
    """The file of a trace that is at hand; a name narrows the search only."""
    wanted = (digest, job, recipe, split, recompute)
    shipped = _shipped(TRACE_FOLDER, *wanted)
    if shipped is not None:
        return shipped
    own = (folder or user_trace_folder()) / trace_name(digest[:16], *wanted[1:])
    if not own.is_file():
        return None
    try:
        load_trace(own)
        return own if _is_of(own) == wanted else None
    except (OSError, ValueError):
        if folder is not None:
            raise
        # One of the user's cache that is damaged is as good as none.
        return None


@lru_cache(maxsize=64)
def _shipped(
    folder: Path, digest: str, job: str, recipe: str, split: Split, recompute: str
) -> Path | None:
    """The shipped one: shipped files stay as they are while a process runs."""
    wanted = (digest, job, recipe, split, recompute)
    paths = sorted(folder.glob(trace_name("*", *wanted[1:])))
    return next((path for path in paths if _is_of(path) == wanted), None)


def _is_of(path: Path) -> tuple[str, str, str, Split, str]:
    header = trace_header(path)
    recompute = header.get("recompute", "published")
    return header["shape_digest"], header["job"], header["recipe"], split_of(header), recompute


def _record(
    model: ModelConfig, job: str, recipe: str, split: Split, recompute: str, folder: Path
) -> Path:
    """Record a trace in a process of its own, since only the reference model imports torch."""
    config = folder / f"{model.shape_digest[:16]}.json"
    command = [
        "python", "-m", "reference_model", "trace", "--config", str(config),
        "--jobs", job, "--recipe", recipe, "--recompute", recompute, "--out", str(folder),
        *(f"--{axis.replace('_', '-')}-parallel={ranks}"
          for axis, ranks in split._asdict().items() if ranks > 1),
    ]  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: recordings cannot be kept: {error.strerror}") from None
    write_whole(config, json.dumps(asdict(model), indent=2) + "\n")
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"model: no {job} trace of such layers is recorded, and recording one takes torch: "
            f"pip install '.[reference]' in a checkout, or run where torch is: {' '.join(command)}"
        )
    warnings.warn(
        f"no {job} trace of such layers is recorded yet; recording one in {folder}, once, "
        "which takes some ten seconds",
        stacklevel=2,
    )
    done = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"model: its {job} operators cannot be recorded: {reason}")
    return folder / trace_name(model.shape_digest[:16], job, recipe, split, recompute)
