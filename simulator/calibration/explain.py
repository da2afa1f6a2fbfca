"""Say what `calibrate` would read as what, without fitting anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware_profiles.schema import load_calibration
from simulator.calibration.calibration_files import base_of
from simulator.calibration.kernel_choice import choose_versions, kernel_of, kernel_text
from simulator.calibration.sources import read_sources


@dataclass(frozen=True, slots=True)
class ReadKernels:
    """Rows of one kernel in one version."""

    kernel: str
    """Kind and types."""
    kernel_set: str
    rows: int
    taken: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would be read as what."""

    read_by: tuple[str, ...]
    """The mapping of each source."""
    kernels: tuple[ReadKernels, ...]
    aside: tuple[str, ...]
    """What would be set aside, and why."""


def explain_sources(
    sources: Sequence[Path],
    *,
    gpu: str,
    mappings: Sequence[str] = (),
    sets: Sequence[str] = (),
    base: str | None = None,
    stated: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """Read sources as `fit_calibration` would, and say what of them would be taken.

    Raises ValueError as `read_sources` does.
    """
    read = read_sources(sources, gpu=gpu, mappings=mappings, stated=stated, progress=progress)
    named = (*sets, *load_calibration(base_of(gpu, base)).kernel_sets)
    choice = choose_versions(read.measurements, read.sets, named=named)
    taken = {(kernel_of(row), row.kernel_set) for row in choice.rows}
    counts = Counter((kernel_of(row), row.kernel_set) for row in read.measurements)
    return Explanation(
        read_by=read.mappings,
        kernels=tuple(
            ReadKernels(kernel_text(kernel), name, rows, (kernel, name) in taken)
            for (kernel, name), rows in sorted(counts.items())
        ),
        aside=(
            *read.warnings,
            *(f"{count} rows set aside: {reason}" for reason, count in choice.aside.items()),
            *read.unmapped,
        ),
    )
