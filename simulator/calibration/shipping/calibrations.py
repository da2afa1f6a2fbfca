"""Write the shipped calibration files from measured tables and stated inputs.

    python -m simulator.calibration.shipping.calibrations            all of them
    python -m simulator.calibration.shipping.calibrations h100_sxm   those that are named
        --into DIR                                               somewhere else

Three kinds. `FITTED` rest on tables: the file's own inputs (overlap, transfers, kernel sets ...,
each with its source) stay, its fits are made anew. `RESTATED` have no rows: they take all inputs of
the calibration that they restate, and state how wrong that may be. `ENGINES` have an engine's rows
and take all inputs but the gap, and the small kernels, of the reference model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hardware_profiles.fields import ROOT, to_profile
from hardware_profiles.profile_files import read_profile
from hardware_profiles.schema import (
    CalibrationProfile,
    load_calibration,
    load_gpu,
    override_calibration,
)
from hardware_profiles.tables import load_measurements, table_path
from hardware_profiles.whole_files import write_whole
from simulator.calibration.calibration_files import profile_text
from simulator.calibration.family_fit import fit_families

FOLDER = ROOT / "calibrations"

FITTED = (
    "h100_sxm_reference",
    "h200_sxm_reference",
    "h800_decode",
    "h800_sxm",
    "h800_without_trace",
)


_NO_DECOMPRESSED = "; no row of decompressed prefill attention"
RESTATED_FROM = "h200_sxm_reference"
RESTATED = {
    "h20_sxm": "h20_sxm",
    "b200_sxm_reference": "b200_sxm",
    "gb200_reference": "gb200",
    "rtx_4090": "rtx_4090",
}
"""{calibration: GPU, whose datasheet it follows from `RESTATED_FROM` by}"""


ENGINES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "h100_sxm": (("h100_sxm_reference", RESTATED_FROM), _NO_DECOMPRESSED),
    "h200_sxm": ((RESTATED_FROM,), _NO_DECOMPRESSED),
    "b200_sxm": ((RESTATED_FROM,), ""),
    # Decode attention of a GB200 was not published: that of the B200, restated.
    "gb200": (("b200_sxm", RESTATED_FROM), "; no row of decode attention"),
}
"""{calibration, its GPU, and table of its rows that engine_tables.py writes: who answers for the
kernels that the table lacks, and large ones without rows, in words}"""
_ENGINE_KERNELS = (
    "SGLang 0.5.14 (DeepGEMM, {attention}, cuBLAS) and 0.5.10 (expert layers), as AIConfigurator "
    "timed them{lacking}"
)
_ENGINE_DATE = "2026-03 to 2026-08"
_ENGINE_DATE_SOURCE = (
    "SGLang 0.5.9 was current on 2026-03-05 (radixark/miles 686), 0.5.17 came out on 2026-08-08 "
    "(aws/deep-learning-containers 6722); AIConfigurator's tables have no date"
)

_IN_A_STEP = (
    "own measurement on an H100 and an H200 - what an operator of a decode step takes more where "
    "it stands in the step than in a burst of itself, which rows of engines are (mean over the "
    "operators of a step; median and middle 80% of twelve steps at full clock, whole/h100_sxm_3 "
    "and h200_sxm_3)"
)
ENGINE_GAP: Mapping[bool, Mapping[str, str]] = {
    True: {"value": "0.58 us", "low": "0.21 us", "high": "0.74 us", "source": _IN_A_STEP},
    False: {
        "value": "0.58 us",
        "low": "0 s",
        "high": "0.74 us",
        "source": f"{_IN_A_STEP}; low - none, for no other architecture was measured",
    },
}
"""Of engines' kernels, by whether the GPU's architecture is the measured one."""

_DEEPEP_BY_SMS = (
    "derived: AIConfigurator perf tables, DeepEP normal kernels on {gpu}, 131,072 tokens, each on "
    "{reached} GPUs; median of {size} bytes per copy over time and SMs at {sms} SMs, before the "
    "links saturate"
)


@dataclass(frozen=True, slots=True)
class CopyRate:
    """Copies of one communication SM on a GPU whose DeepEP kernels were timed by SM count."""

    gpu: str
    """In words."""
    dispatch: str
    combine: str
    reached: str
    """Distinct GPUs of a token among those that were timed."""
    sms: str

    def onto(self, rates: dict[str, Any], *, same_sms: bool) -> None:
        """Put these rates in the place of another GPU's, as a calibration's file has them.

        Args:
            same_sms: whether the SMs are the same, so that copies between nodes are too.
        """
        text = {"gpu": self.gpu, "reached": self.reached, "sms": self.sms}
        rates |= {"dispatch": self.dispatch, "combine": self.combine}
        rates["sources"] |= {
            "dispatch": _DEEPEP_BY_SMS.format(size="7,392", **text),
            "combine": _DEEPEP_BY_SMS.format(size="14,336", **text),
        }
        for name in () if same_sms else ("forwarded_dispatch", "forwarded_combine"):
            rates["sources"][name] = "assumed: as on an H100, no row between nodes"


COPY_RATES: Mapping[str, CopyRate] = {
    "h100_sxm": CopyRate("H100", "17.0 GB/s", "20.3 GB/s", "5.28 of 8", "4, 8, 12 and 16"),
    "b200_sxm": CopyRate("B200", "16.5 GB/s", "21.6 GB/s", "5.28 of 8", "4, 8, 12, 16 and 24"),
    "gb200": CopyRate("GB200", "15.0 GB/s", "16.9 GB/s", "3.61 of 4", "4, 8, 12, 16 and 24"),
}
"""{GPU: copies that were timed on it}. Others take `RESTATED_FROM`'s.
A GB200 tray has 4 GPUs: 4 (1 - C(192,8) / C(256,8)) = 3.61."""

UNMEASURED: Mapping[str, Any] = {
    "value": 1.0,
    "low": 0.5,
    "high": 2.0,
    "source": "assumed: a factor of two either way until the GPU is measured",
}
"""Error of a calibration from datasheets alone."""


def calibration_text(name: str) -> str:
    """The file of one shipped calibration, as this module writes it."""
    if name in FITTED:
        return _fitted(name)
    if name in RESTATED:
        return _restated(name)
    if name in ENGINES:
        return _engine(name)
    raise ValueError(f"calibration {name!r} is not written here; known: {', '.join(known())}")


def known() -> tuple[str, ...]:
    """Names of the shipped calibrations."""
    return tuple(sorted({*FITTED, *RESTATED, *ENGINES}))


def _fitted(name: str) -> str:
    raw, _ = read_profile("calibrations", name)
    profile = load_calibration(name)
    rows = [row for table in profile.measurements for row in load_measurements(table_path(table))]
    fits, _ = fit_families(
        [row for row in rows if row.kernel_set in profile.kernel_sets],
        gpu=load_gpu(profile.gpu),
        floor=profile.kernel_floor.value,
        tiles=profile.tiles,
    )
    return profile_text(profile.model_copy(update={"fits": tuple(fits)}), raw)


def _restated(name: str) -> str:
    gpu, measured = load_gpu(RESTATED[name]), load_gpu(load_calibration(RESTATED_FROM).gpu)
    reason = "shares of the ceilings as on an H200"
    if gpu.architecture != measured.architecture:
        reason = f"another architecture: {reason}"
    raw, _ = read_profile("calibrations", RESTATED_FROM)
    sources = {key: text for key, text in raw["sources"].items() if key != "kernel_sets"}
    raw |= {
        "name": name,
        "gpu": gpu.name,
        "measurements": [],
        "kernel_sets": [],
        "restated_from": [RESTATED_FROM],
        "basis": "datasheet",
        "sources": sources | {"restated_from": reason},
        "restatement": dict(UNMEASURED),
    }
    _copies_of(gpu.name, raw, same_sms=False)
    del raw["fits"]
    to_profile(CalibrationProfile, override_calibration(raw, {}, where=name), where=name)
    title = (
        f"# {name}: kernel times from an H200 by the ceilings of both datasheets (datasheet).\n"
        "# Written by `python -m simulator.calibration.shipping.calibrations`.\n"
    )
    return title + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)


def _copies_of(gpu: str, raw: dict[str, Any], *, same_sms: bool) -> None:
    """Put the rates at which a GPU's communication SMs copy into a calibration of an H200."""
    rates = raw["all_to_all"]["copy_bandwidth_per_sm"]
    if gpu in COPY_RATES:
        COPY_RATES[gpu].onto(rates, same_sms=same_sms)
    else:
        rates["gpu"] = load_calibration(RESTATED_FROM).gpu
        rates["sources"]["gpu"] = "assumed: an SM copies as one of an H200 does"


def _engine(name: str) -> str:
    """The calibration of a GPU's engine kernels: its own rows, all else as on an H200."""
    completed_by, lacking = ENGINES[name]
    gpu, measured = load_gpu(name), load_gpu(load_calibration(RESTATED_FROM).gpu)
    raw, _ = read_profile("calibrations", RESTATED_FROM)
    rows = load_measurements(table_path(name))
    same = gpu.architecture == measured.architecture
    attention = "FlashAttention 3" if same else "TensorRT-LLM's MLA"
    raw |= {
        "name": name,
        "gpu": gpu.name,
        "measurements": [name],
        "kernel_sets": sorted({row.kernel_set for row in rows}),
        "restated_from": [],
        "completed_by": list(completed_by),
        "basis": "measured",
        "kernels": {
            "kind": "engine",
            "name": _ENGINE_KERNELS.format(attention=attention, lacking=lacking),
            "date": _ENGINE_DATE,
            "jobs": ["prefill", "decode"],
            "sources": {"date": _ENGINE_DATE_SOURCE},
        },
        "sources": raw["sources"]
        | {
            "kernel_sets": "one version of each kernel, so that their order decides nothing",
            "completed_by": "small kernels, which no published table has: the reference model's",
        },
    }
    raw["gap"] = dict(ENGINE_GAP[same])
    if not same:
        raw["restatement"] = dict(UNMEASURED)
    if gpu.name != measured.name:
        _copies_of(gpu.name, raw, same_sms=same)
    del raw["fits"]
    profile = to_profile(CalibrationProfile, override_calibration(raw, {}, where=name), where=name)
    fits, _ = fit_families(rows, gpu=gpu, floor=profile.kernel_floor.value, tiles=profile.tiles)
    return profile_text(profile.model_copy(update={"fits": tuple(fits)}), raw)


def main(arguments: list[str] | None = None) -> None:
    """Write the named calibrations, or all."""
    parser = argparse.ArgumentParser(prog="python -m simulator.calibration.shipping.calibrations")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known())}")
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        # What others are restated from comes first.
        names = options.names or [*FITTED, *RESTATED, *ENGINES]
        for name in names:
            text = calibration_text(name)
            write_whole(options.into / f"{name}.yaml", text)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
