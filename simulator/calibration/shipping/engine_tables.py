"""Write the tables of engine kernels from the published ones, in this project's own form.

    python -m simulator.calibration.shipping.engine_tables FOLDER

FOLDER holds a folder of published files for each GPU, as they are (ai-dynamo/aiconfigurator, perf
tables). They are read as `dsv3sim calibrate` reads them: the newest version of each kernel, what is
no kernel time set aside. Repeats of one kernel become their geometric mean with its spread. Dense
products are thinned out: a shipped table has the sizes of `KEPT_EXTENTS` and `KEPT_ROWS`, every
other octave of n and k and every octave of m, as the model is smooth between them; all other
kernels stay whole. Transfers are no kernels and stay out: a transport has them.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hardware_profiles.tables import TRANSFER_KINDS, Measurement, table_path, write_measurements
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.calibration.kernel_choice import choose_versions
from simulator.calibration.sources import read_sources

GPUS = ("h100_sxm", "h200_sxm", "b200_sxm", "gb200")
KEPT_EXTENTS = frozenset({128, 256, 512, 1024, 1536, 2048, 4096, 7168, 16384, 65536})
"""n and k of the dense products that are kept."""
KEPT_ROWS = frozenset(2**exponent for exponent in range(16))
"""m of the dense products that are kept."""


def engine_rows(folder: Path, gpu: str) -> list[Measurement]:
    """Rows of one GPU's engine kernels, as a shipped table has them."""
    read = read_sources([folder / gpu], gpu=gpu)
    chosen = choose_versions(read, named=())
    kept = [
        row
        for row in chosen.measurements
        if row.kind not in TRANSFER_KINDS and row.kind not in ALL_TO_ALL_KINDS
    ]
    return without_repeats(thinned(kept))


def thinned(rows: Iterable[Measurement]) -> list[Measurement]:
    """Rows without the dense products between the sizes that are kept."""
    kept = []
    for row in rows:
        if row.kind == "gemm":
            sizes = dict(row.sizes)
            if not {sizes["n"], sizes["k"]} <= KEPT_EXTENTS or sizes["m"] not in KEPT_ROWS:
                continue
        kept.append(row)
    return kept


def without_repeats(rows: Iterable[Measurement]) -> list[Measurement]:
    """Repeats of one kernel as one row: their geometric mean, and how far they lie apart."""
    groups: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for row in rows:
        groups[row.kind, row.sizes, row.dtype, row.sms, row.conditions].append(row)
    return [_mean(repeats) for repeats in groups.values()]


def _mean(repeats: Sequence[Measurement]) -> Measurement:
    if len(repeats) == 1:
        return repeats[0]
    seconds = [row.seconds for row in repeats]
    mean = statistics.geometric_mean(seconds)
    spread = statistics.stdev(seconds) / statistics.fmean(seconds)
    return replace(repeats[0], seconds=mean, spread=spread)


def main(arguments: list[str] | None = None) -> None:
    """Write the tables of all GPUs."""
    parser = argparse.ArgumentParser(prog="python -m simulator.calibration.shipping.engine_tables")
    parser.add_argument("folder", type=Path, help="with a folder of published tables for each GPU")
    parser.add_argument("--gpu", choices=GPUS, action="append", help="default: all")
    options = parser.parse_args(arguments)
    for gpu in options.gpu or GPUS:
        write_measurements(table_path(gpu), engine_rows(options.folder, gpu))


if __name__ == "__main__":
    main()
