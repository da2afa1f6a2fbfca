"""Choose one version of each kernel among measured rows: by a stated rule, never by their number.

Rows of another version, kernel source or type of cache time another kernel. Of one kernel (kind and
types; of dispatch and combine also whether they are low-latency and whether they cross nodes) these
are taken, and the others set aside and counted:

1. every kernel set that is named (`--sets`, or the base calibration's own), in that order;
2. else the newest version, of several the first in its mapping, then by name. Rows whose mapping
   says that they are no default (`unless_named`) are taken only by name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from hardware_profiles.tables import Measurement
from simulator.calibration.imported_rows import ImportedRows, KernelSet
from simulator.hardware.kernels.families import family_of

RULE = "newest version first; --sets names others"

KernelKey = tuple[str, str, str, bool, str]
"""(kind, operand type, result type, whether it adds into the result, layout of a transfer)."""


def choose_versions(read: ImportedRows, *, named: Sequence[str]) -> ImportedRows:
    """Take one version of each kernel; what is set aside becomes a warning for each reason.

    Kernel sets of which nothing is known have no version.

    Args:
        named: kernel sets that are all taken, most preferred first.

    Returns what was read with the rows that are taken, and their kernel sets: the named ones in
    their order, then the others by name.
    """
    ranks = {known.name: known for known in read.sets}
    kernels: dict[KernelKey, Counter[str]] = defaultdict(Counter)
    for row in read.measurements:
        kernels[kernel_of(row)][row.kernel_set] += 1
    taken: dict[KernelKey, set[str]] = {}
    aside: dict[str, int] = defaultdict(int)
    for kernel, counts in kernels.items():
        known = {name: ranks.get(name, KernelSet(name)) for name in counts}
        chosen = {name for name in counts if name in named}
        default = sorted(
            (of for of in known.values() if of.name not in chosen and not of.unless_named),
            key=lambda of: ([-number for number in (*of.version, 0)], of.place, of.name),
        )
        newest = [] if chosen else default[:1]
        taken[kernel] = chosen | {of.name for of in newest}
        for name, count in sorted(counts.items()):
            if name in taken[kernel]:
                continue
            reason = known[name].unless_named or f"{' and '.join(sorted(taken[kernel]))} is taken"
            aside[f"{name}: another kernel of {kernel_text(kernel)}: {reason}"] += count
    kept = tuple(row for row in read.measurements if row.kernel_set in taken[kernel_of(row)])
    found = {row.kernel_set for row in kept}
    order = [name for name in named if name in found]
    return replace(
        read,
        measurements=kept,
        sets=tuple(
            ranks.get(name, KernelSet(name)) for name in (*order, *sorted(found - set(order)))
        ),
        warnings=(
            *read.warnings,
            *(f"{count} rows set aside: {reason}" for reason, count in aside.items()),
        ),
    )


def kernel_of(row: Measurement) -> KernelKey:
    """What a row times, whatever the version of it."""
    between = (row.nodes or 1) != 1
    layout = " ".join(
        word
        for word in (row.layout, "between nodes" if between else "")
        if word and row.kind in ("dispatch", "combine")
    )
    return (*family_of(row), layout)


def kernel_text(kernel: KernelKey) -> str:
    """A kernel in words."""
    kind, dtype, out_dtype, accumulates, layout = kernel
    added = ", accumulated" if accumulates else ""
    return f"{kind} {dtype} -> {out_dtype}{added}{f', {layout}' if layout else ''}"
