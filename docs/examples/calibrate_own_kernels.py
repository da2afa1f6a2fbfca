"""What a kernel of one's own is worth: its times become a calibration, and a step runs on it.

python docs/examples/calibrate_own_kernels.py [table.csv]

Without a table one is written first: the FP8 products of the step, each in 0.85 of the time that
the shipped kernels take, as a benchmark of a faster kernel might print them.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

from simulator import Run, load_scenario, simulate
from simulator.calibration.calibration_files import calibrate_to_file

SCENARIO = "decode_ep8_h200"
GPU = "h200_sxm"
SHARE_OF_TIME = 0.85


def write_faster_products(run: Run[Any], table: Path) -> int:
    """Write M, N, K and the time of each FP8 product of a step; returns how many rows."""
    rows = {
        (product["sizes"]["m"], product["sizes"]["n"], product["sizes"]["k"]): product["seconds"]
        for product in run.quick_metrics["operators"]
        if (product["kind"], product["dtype"]) == ("gemm", "fp8_e4m3")
    }
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["M", "N", "K", "dtype", "time_us"])
        for sizes, seconds in sorted(rows.items()):
            writer.writerow([*sizes, "fp8", f"{seconds * 1e6 * SHARE_OF_TIME:.3f}"])
    return len(rows)


def calibrated(table: Path, out: Path) -> Run[Any]:
    """The step on the kernels of a table; what it has no row of comes from the shipped ones."""
    calibrate_to_file([table], gpu=GPU, out=out, base=None)
    return simulate(load_scenario(SCENARIO, [f"calibration={out}"]))


def main() -> None:
    """Run the step with shipped kernels and with those of the table, and print both."""
    shipped = simulate(load_scenario(SCENARIO))
    with tempfile.TemporaryDirectory() as place:
        table = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(place) / "products.csv"
        if len(sys.argv) == 1:
            print(f"{write_faster_products(shipped, table)} products, x {SHARE_OF_TIME}")
        own = calibrated(table, Path(place) / "own.yaml")
    for name, run in {"shipped kernels": shipped, "own kernels": own}.items():
        metrics = run.quick_metrics
        share = metrics["kernels"]["own_rows_share"]
        print(
            f"{name:16} {metrics['step_time_s'] * 1e3:6.2f} ms expected, "
            f"{metrics['ideal']['step_time_s'] * 1e3:6.2f} ms ideal; "
            f"its rows decide {share:.0%} of the kernel time"
        )


if __name__ == "__main__":
    main()
