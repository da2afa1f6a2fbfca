"""What normal dispatch and combine kernels take by SMs, tokens and nodes, as files state it.

One law per direction and number of nodes (simulator/hardware/network/normal_law.py says how its
parameters make a time), fitted to timed kernels of one GPU.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hardware_profiles.fields import (
    ROOT,
    BandwidthValue,
    Count,
    Profile,
    Ratio,
    TimeValue,
    read_yaml,
    to_profile,
)

FOLDER = ROOT / "normal"

AtLeastOne = Annotated[float, Field(strict=True, ge=1)]


class NormalLawProfile(Profile):
    """One direction among some nodes; a node is what NVLink joins."""

    operation: Literal["dispatch", "combine"]
    nodes: Count
    start: TimeValue
    """Of a kernel that moves next to nothing."""
    ramp: TimeValue
    """What filling the pipeline adds at most."""
    softness: AtLeastOne
    """How sharply start and payload give way to each other: 1 adds them, more takes the longer."""
    copy_bandwidth_per_sm: BandwidthValue
    """Copies to GPUs that an SM moves; between nodes of all SMs, those that forward or not."""
    corner: AtLeastOne
    """The same of copies and links."""
    link_share: Ratio
    """Of the line rate that the link reaches: NVLink within a node, NICs between nodes; 1 where
    copies of SMs decided in every row."""


class NormalErrors(Profile):
    """Rows of one direction, predicted without all rows of their tokens and nodes."""

    operation: Literal["dispatch", "combine"]
    rows: Count
    median: float
    """Of |predicted / measured - 1|."""
    p90: float
    quantile_80: Ratio
    """80% quantile of the absolute log error: the half-width of an interval."""


class NormalKernels(Profile):
    """Kernels of one library on one GPU."""

    name: str
    gpus: tuple[str, ...]
    """Whose kernels these stand for, the measured one first; the others have the same SMs."""
    laws: tuple[NormalLawProfile, ...]
    left_out: tuple[NormalErrors, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        keys = [(law.operation, law.nodes) for law in self.laws]
        if not keys or len(keys) != len(set(keys)):
            raise ValueError("laws: allowed: at least one, each once per operation and nodes")
        if {law.operation for law in self.laws} != {errors.operation for errors in self.left_out}:
            raise ValueError("left_out: allowed: one entry for each operation that has laws")
        return self


DEEPEP, NONE = "deepep", "none"
"""The shipped kernels of whatever GPU a cluster has; links and copies at their rates."""


def load_normal_kernels(name_or_path: str, *, gpu: str) -> NormalKernels | None:
    """Load kernels by shipped name or path; "deepep" means the shipped ones that stand for the
    GPU's, None where there are none, and "none" none. Raises ValueError, one line, for anything
    else."""
    if name_or_path == NONE:
        return None
    if name_or_path == DEEPEP:
        shipped = map(_shipped, known_normal_kernels())
        return next((kernels for kernels in shipped if gpu in kernels.gpus), None)
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _read(Path(name_or_path))
    if name_or_path not in known_normal_kernels():
        raise ValueError(
            f"unknown normal kernels {name_or_path!r}; known: {DEEPEP}, {NONE}, "
            f"{', '.join(known_normal_kernels())}; or give a path to a .yaml file"
        )
    return _shipped(name_or_path)


@cache
def _shipped(name: str) -> NormalKernels:
    """Read once: shipped files stay as they are while a process runs."""
    return _read(FOLDER / f"{name}.yaml")


@cache
def known_normal_kernels() -> tuple[str, ...]:
    """Names of the shipped files, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def _read(path: Path) -> NormalKernels:
    where = f"normal/{path.name}" if path.parent == FOLDER else str(path)
    return to_profile(NormalKernels, read_yaml(path, where=where), where=where)
