"""What tables and profiles give: measured rows, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware_profiles.tables import Measurement
from simulator.workload.profile.mapped_kernels import UnmappedKernel


@dataclass(frozen=True, slots=True)
class KernelSet:
    """One version of some kernels, and how it ranks among others."""

    name: str
    version: tuple[int, ...] = ()
    """Numbers of its version, () where it has none."""
    place: int = 0
    """Among the kernels of its mapping, the most preferred first."""
    unless_named: str | None = None
    """Why it is taken only where it is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRows:
    """What one table or profile gives, or several together."""

    measurements: tuple[Measurement, ...]
    read_by: tuple[str, ...] = ()
    """By what each source was read, and how much of it: "infersim_gemm, 12 rows"."""
    warnings: tuple[str, ...] = ()
    """One for each reason that lines or rows were set aside, with their number, and more."""
    sets: tuple[KernelSet, ...] = ()
    """What is known of the rows' kernel sets, where their mappings rank them."""
    unmapped: tuple[UnmappedKernel, ...] = ()
    """Kernels of profiles without a row, the longest of each first."""
    modules: tuple[Path, ...] = ()
    """Tables of whole modules, which give no row."""


def sources_together(found: Sequence[ImportedRows]) -> ImportedRows:
    """What several sources give, in their order; of a kernel set with one place, what the last of
    them says."""
    sets = {(known.name, known.place): known for one in found for known in one.sets}
    return ImportedRows(
        measurements=tuple(row for one in found for row in one.measurements),
        read_by=tuple(text for one in found for text in one.read_by),
        warnings=tuple(text for one in found for text in one.warnings),
        sets=tuple(sets.values()),
        unmapped=tuple(lost for one in found for lost in one.unmapped),
        modules=tuple(path for one in found for path in one.modules),
    )
