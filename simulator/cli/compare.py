"""dsv3sim compare: put several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.options import print_tables


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories of two or more runs.")],
) -> None:
    """Print the metrics of several runs side by side, and what training steps differ by."""
    from reports.run_directory import check_comparable, read_metrics
    from reports.terminal import attribution_comparison, comparison_table
    from simulator.analysis.kernels_used import difference_in_kind

    if len(runs) < 2:
        raise ValueError("compare: one run given; allowed: two or more run directories")
    read = [(str(directory), read_metrics(directory)) for directory in runs]
    check_comparable(read)
    attributed = attribution_comparison(read)
    print_tables(comparison_table(read), *([attributed] if attributed is not None else []))
    note = difference_in_kind(metrics for _, metrics in read)
    if note:
        print(f"note: {note}")
