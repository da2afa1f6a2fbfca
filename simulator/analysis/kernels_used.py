"""Say whose kernel times a run rests on, and what the other kernel sets of that GPU would give.

Two runs on kernels of different kind, those of an engine and those of the reference model, differ
by the kernels as well as by their machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hardware_profiles.same_gpu import same_gpu
from hardware_profiles.schema import (
    CalibrationProfile,
    GpuProfile,
    known_calibrations,
    load_calibration,
    load_gpu,
)
from hardware_profiles.units import Seconds
from simulator.analysis.published import plain_values
from simulator.scenario.files import Scenario

NOT_STATED = "not stated"


def kernels_used(calibration: CalibrationProfile, gpu: GpuProfile, job: str) -> dict[str, str]:
    """Whose kernels a run on `gpu` is predicted with; of another GPU they are restated from both
    datasheets. made_for: their jobs, where the run's is not among them.

    Args:
        job: "training", "prefill" or "decode".
    """
    measured, whose = load_gpu(calibration.gpu), calibration.kernels
    used = {
        "calibration": calibration.name,
        "measured_on": measured.name,
        "gpu": gpu.name,
        "basis": calibration.basis if same_gpu(measured, gpu) else "datasheet",
        "kind": NOT_STATED,
    }
    if whose is not None:
        used |= {"kind": whose.kind, "name": whose.name, "date": whose.date}
        if job not in whose.jobs:
            used["made_for"] = " and ".join(whose.jobs)
    return used


def time_by_calibration(
    own: CalibrationProfile, times: Iterable[tuple[str, Seconds]]
) -> dict[str, Any]:
    """What share of the time of all kernels, dispatch and combine among them, a calibration's own
    rows decide, alone or in the ratio of two kernels of another, and what share everyone else;
    nothing where no other completes it.

    Args:
        times: (who answers for a kernel, the seconds that all its calls take); of dispatch and
            combine those that occupy SMs.
    """
    if not own.completed_by:
        return {}
    seconds: dict[str, Seconds] = {own.name: 0.0}
    for name, value in times:
        seconds[name] = seconds.get(name, 0.0) + value
    total = sum(seconds.values()) or 1.0
    shares = {name: value / total for name, value in seconds.items()}
    decided = sum(share for name, share in shares.items() if name.split(" ")[0] == own.name)
    return {"own_rows_share": decided, "time_by_calibration": shares}


def other_calibration(scenario: Scenario) -> CalibrationProfile | None:
    """The shipped calibration whose kernels are of the other kind and for the scenario's job, of
    the cluster's GPU or, where it has none, of the one that is nearest to it; None without one."""
    whose = scenario.calibration.kernels
    if whose is None:
        return None
    job = getattr(scenario.job, "phase", "training")
    gpu = scenario.cluster.node.gpu

    nearest: tuple[tuple[bool, bool, str], CalibrationProfile] | None = None
    for name in known_calibrations():
        found = load_calibration(name)
        other = found.kernels
        if other is None or other.kind == whose.kind or job not in other.jobs:
            continue
        of = load_gpu(found.gpu)
        if same_gpu(of, gpu):
            return found
        distance = (of.architecture != gpu.architecture, of.sms != gpu.sms, name)
        if nearest is None or distance < nearest[0]:
            nearest = distance, found
    return None if nearest is None else nearest[1]


def difference_in_kind(runs: Iterable[Mapping[str, Any]]) -> str:
    """A sentence that says that runs rest on kernels of different kinds; empty where they do not,
    or where a job has no kernels. `runs` are their metrics, nested or as plain paths."""
    kinds: dict[str, set[str]] = {}
    for metrics in runs:
        for calibration, kind in _kinds(metrics):
            kinds.setdefault(kind, set()).add(calibration)
    if len(kinds) < 2:
        return ""
    listed = "; ".join(f"{kind}: {', '.join(sorted(of))}" for kind, of in sorted(kinds.items()))
    return (
        f"kernels of different kind ({listed}): these runs differ by whose kernels they are "
        "predicted with, not by their machines and settings alone"
    )


def _kinds(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(calibration, kind) of all kernels that a run names."""
    flat = dict(plain_values(metrics))
    for path, kind in flat.items():
        if path.startswith("kernels.") and path.endswith(".kind"):
            yield str(flat[f"{path.removesuffix('kind')}calibration"]), str(kind)
