"""Write the shipped transports of NCCL and normal kernels of DeepEP from the public tables.

    python -m simulator.calibration.shipping.transports TABLES     GPU by GPU
        --into DIR                                                 somewhere else

Of a GPU with tables of several versions the newest is taken; HEADINGS says how far off the older
one is. No table has `send`: this project timed it between H200s, whose links an H100 has too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import yaml

from hardware_profiles.fields import ROOT, to_profile
from hardware_profiles.normal_kernels import FOLDER as NORMAL_FOLDER
from hardware_profiles.normal_kernels import NormalKernels
from hardware_profiles.schema import NCCL, TransportProfile, load_calibration, load_gpu
from hardware_profiles.tables import load_measurements, table_path
from hardware_profiles.whole_files import write_whole
from simulator.calibration.collective_fit import transport_of
from simulator.calibration.normal_fit import NIC, fit_normal, normal_kernels, normal_tables_of
from simulator.calibration.tables import import_table

FOLDER = ROOT / "transports"
VERSION = "2.29.2"
OWN_ROWS = "host/h200_sxm_collectives"
SAME_LINKS = frozenset({"h100_sxm", "h200_sxm"})
"""GPUs whose sends the rows between H200s stand for."""
SOURCE = f"AIConfigurator perf tables (ai-dynamo), NCCL {VERSION}, half and int8, one host"
OWN_SOURCE = f"send: hosts of two and four H200 measured by this project ({OWN_ROWS}, queued)"

HEADINGS: Mapping[str, str] = {
    "b200_sxm": "The 2.27.3 table of the same GPU, predicted by this file,\n"
    "# is off by 2.5% in median and 9.9% at the 90th percentile (1,224 rows).",
    "gb200": "Hosts have four GPUs.",
    "h100_sxm": "The 2.27.3 table of the same GPU, predicted by this file,\n"
    "# is off by 0.9% in median and 5.5% at the 90th percentile (816 rows).",
    "h200_sxm": "Rows that this project measured on hosts of two and\n"
    "# four H200 (send apart, launched in advance), predicted by this file, are off by 1.2% in "
    "median and\n# 8.7% at the 90th percentile (120 rows).",
}
"""{GPU: what else is known}"""


def transport_file(gpu: str, tables: Path) -> str:
    """The file of one shipped transport, as this module writes it.

    Args:
        tables: folder of the public tables, GPU by GPU.
    """
    path = tables / gpu / "comm" / "nccl" / VERSION / "nccl_perf.parquet"
    rows, source = list(import_table(path, gpu=gpu).measurements), SOURCE
    if gpu in SAME_LINKS:
        own = load_measurements(table_path(OWN_ROWS))
        rows += [r for r in own if r.kind == "send" and r.condition("launch") == "queued"]
        source = f"{SOURCE}; {OWN_SOURCE}"
    name = f"{NCCL}_{gpu}"
    raw, _ = transport_of(name, rows, gpu=load_gpu(gpu), library=f"NCCL {VERSION}", source=source)
    to_profile(TransportProfile, raw, where=name)
    heading = (
        "# NCCL within one host, by operation, number of GPUs and size, as nccl-tests count\n"
        "# sizes. Written by simulator.calibration.shipping.transports; left_out says how far off\n"
        f"# sizes are that no row has. {HEADINGS[gpu]}\n"
    )
    return heading + yaml.safe_dump(raw, sort_keys=False, width=100, default_flow_style=None)


NORMAL: Mapping[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "b200_sxm": (("b200_sxm",), (("0.5.12", "1"),)),
    "gb200": (("gb200",), (("0.5.12", "1"),)),
    "h100_sxm": (
        ("h100_sxm", "h200_sxm", "h800_sxm", "h20_sxm"),
        (("0.5.12", "1"), ("0.5.6.post2", "2"), ("0.5.6.post2", "4"), ("0.5.6.post2", "8")),
    ),
}
"""{GPU: GPUs that its kernels stand for, (version, nodes) whose rows are taken}"""


def normal_file(gpu: str, tables: Path) -> str:
    """The file of one GPU's shipped normal kernels, as this module writes it."""
    gpus, taken = NORMAL[gpu]
    rows = [
        row
        for version in dict.fromkeys(version for version, _ in taken)
        for row in import_table(
            tables / gpu / "comm" / "sglang" / version / "wideep_deepep_normal_perf.parquet",
            gpu=gpu,
        ).measurements
        if (version, row.condition("nodes")) in taken
    ]
    name = f"deepep_{gpu}"
    fitted = fit_normal(normal_tables_of(rows, load_calibration(gpu), load_gpu(gpu), nic=NIC))
    versions = ", ".join(f"{version} (nodes: {nodes})" for version, nodes in taken)
    source = (
        "AIConfigurator perf tables (ai-dynamo), DeepEP normal kernels through SGLang "
        f"{versions}, without notify; NICs between nodes assumed 400 Gbit/s for each GPU"
    )
    raw = normal_kernels(name, fitted, gpus=gpus, source=source)
    to_profile(NormalKernels, raw, where=name)
    heading = (
        "# DeepEP's normal dispatch and combine kernels by SMs, tokens and nodes. Fitted and\n"
        "# written by simulator.calibration.shipping.transports.\n"
    )
    return heading + yaml.safe_dump(raw, sort_keys=False, width=100, default_flow_style=None)


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tables", type=Path)
    parser.add_argument("--into", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for gpu in HEADINGS:
        write_whole(arguments.into / f"{NCCL}_{gpu}.yaml", transport_file(gpu, arguments.tables))
    normal = NORMAL_FOLDER if arguments.into == FOLDER else arguments.into
    for gpu in NORMAL:
        write_whole(normal / f"deepep_{gpu}.yaml", normal_file(gpu, arguments.tables))


if __name__ == "__main__":
    main()
