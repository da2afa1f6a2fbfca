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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hardware_profiles.tables import Measurement
from simulator.calibration.tables import KernelSet
from simulator.hardware.kernels.families import family_of

RULE = "newest version first; --sets names others"

Kernel = tuple[str, str, str, bool, str]
"""(kind, operand type, result type, whether it adds into the result, layout of a transfer)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows of one version of each kernel."""

    rows: tuple[Measurement, ...]
    sets: tuple[str, ...]
    """Kernel sets of the rows: the named ones in their order, then the others by name."""
    aside: Mapping[str, int]
    """{reason: rows that were set aside}"""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was set aside, a line for each reason."""
        return tuple(f"{count} rows set aside: {reason}" for reason, count in self.aside.items())


def choose_versions(
    rows: Iterable[Measurement], ranked: Iterable[KernelSet], *, named: Sequence[str]
) -> Choice:
    """Take one version of each kernel.

    Args:
        ranked: what is known of kernel sets; those of others have no version.
        named: kernel sets that are all taken, most preferred first.
    """
    ranks = {known.name: known for known in ranked}
    kernels: dict[Kernel, Counter[str]] = defaultdict(Counter)
    every = list(rows)
    for row in every:
        kernels[kernel_of(row)][row.kernel_set] += 1
    taken: dict[Kernel, set[str]] = {}
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
    kept = tuple(row for row in every if row.kernel_set in taken[kernel_of(row)])
    found = {row.kernel_set for row in kept}
    order = [name for name in named if name in found]
    return Choice(kept, (*order, *sorted(found - set(order))), dict(aside))


def kernel_of(row: Measurement) -> Kernel:
    """What a row times, whatever the version of it."""
    between = row.condition("nodes", "1") != "1"
    layout = " ".join(
        word
        for word in (row.condition("layout"), "between nodes" if between else "")
        if word and row.kind in ("dispatch", "combine")
    )
    return (*family_of(row), layout)


def kernel_text(kernel: Kernel) -> str:
    """A kernel in words."""
    kind, dtype, out_dtype, accumulates, layout = kernel
    added = ", accumulated" if accumulates else ""
    return f"{kind} {dtype} -> {out_dtype}{added}{f', {layout}' if layout else ''}"
