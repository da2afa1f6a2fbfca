"""Names that fields of files had before, beside those that they have now.

A file, or a change "path=value", that uses an earlier name is read for one release, and a warning
says once which name took its place. What a later release no longer reads leaves the tables here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from hardware_profiles.fields import plain_copy

_CALIBRATION = {
    "transfer_from": "restated_from",
    "carried_over": "restatement",
    "basis=transfer": "basis=restated",
    "kernel_gap": "gap",
    "overlap.dispatch": "all_to_all.beside_compute.dispatch",
    "overlap.combine": "all_to_all.beside_compute.combine",
}

EARLIER_NAMES: Mapping[str, Mapping[str, str]] = {
    "calibrations": _CALIBRATION,
    "transports": {"nic_efficiency": "achieved.nic", "nvlink_efficiency": "achieved.nvlink"},
    "mappings": {"kernel_gap": "gap"},
    "scenarios": {
        "training.expert_load": "training.skew.rows.max_over_mean",
        "training.skew.max_over_mean": "training.skew.rows.max_over_mean",
        "training.redundant_experts": "training.experts.redundant",
        "training.reserved_memory": "training.memory.reserved",
        "training.weights_at_once": "training.immediate_weights",
        "serving_step.experts.max_mean_load": "serving_step.skew.rows.max_over_mean",
        "serving_step.skew.max_over_mean": "serving_step.skew.rows.max_over_mean",
        # Values first: the field then moves with them.
        "serving_step.experts.load=zipf": "serving_step.experts.load=popularity",
        "serving_step.experts.load=file": "serving_step.experts.load=popularity",
        "serving_step.experts.load": "serving_step.skew.rows.form",
        "serving_step.experts.zipf_exponent": "serving_step.skew.rows.zipf_exponent",
        "serving_step.experts.file": "serving_step.skew.rows.file",
        "serving_step.speculation": "serving_step.speculative_decoding",
        "serving_step.kernel_gap": "serving_step.gap",
        "serving_step.all_to_all.overlapped": "serving_step.all_to_all.beside_compute",
        "serving_step.speculative_decoding.published_speed_up": "",
        "replay.kernel_gap": "replay.gap",
        "collective.tolerance": "",
        "collective.published": "published",
        # In the order in which their values took turns.
        "collective.vary_topologies": "vary.cluster.fabric.topology",
        "collective.vary_routings": "vary.cluster.fabric.routing",
        "collective.vary_gpus": "vary.operation.gpus",
        "collective.vary_groups": "vary.operation.group",
        "collective.vary_bytes": "vary.operation.bytes_per_gpu",
        **{
            f"fleet.{name}": f"analysis.{name}"
            for name in (
                "interval_requests",
                "verdict",
                "counterfactuals",
                "attributed_metrics",
                "attribution_changes",
            )
        },
        **{f"calibration.{old}": f"calibration.{new}" for old, new in _CALIBRATION.items()},
    },
    # Of figures of a run, where users name them.
    "metrics": {"speculation": "speculative_decoding"},
}
"""{kind of file: {earlier path: path of today, or "" where nothing took its place}}; "field=value"
is another name of a value."""


EARLIER_FILES: Mapping[str, Mapping[str, str]] = {
    "calibrations": {f"{gpu}_engine": gpu for gpu in ("h100_sxm", "h200_sxm", "b200_sxm", "gb200")},
}
"""{kind of file: {earlier name of a shipped one: name of today}}"""


def file_of_today(name: str, kind: str) -> str:
    """The name of today of a shipped file that may be called by an earlier one."""
    today = EARLIER_FILES.get(kind, {}).get(name)
    if today is None:
        return name
    _say([(name, today)], kind)
    return today


def with_names_of_today(raw: dict[str, Any], kind: str, *, where: str) -> dict[str, Any]:
    """A file's dict with what stands under earlier names, and its sources, under those of today.

    Args:
        kind: key of `EARLIER_NAMES`.

    Raises:
        ValueError: a file has both names of one field.
    """
    renamed = plain_copy(raw)
    moved = [names for names in EARLIER_NAMES[kind].items() if _move(renamed, *names, where=where)]
    _say(moved, where)
    return renamed if moved else raw


def path_of_today(path: str, kind: str, *, where: str) -> str:
    """The path of today for a dotted path that may use an earlier name.

    Args:
        kind: key of `EARLIER_NAMES`.

    Raises:
        ValueError: nothing took the place of the name.
    """
    for old, new in EARLIER_NAMES[kind].items():
        if path == old or path.startswith(f"{old}."):
            if not new:
                raise ValueError(f"{where}: {old} is read no more; allowed: leave it out")
            _say([(old, new)], where)
            return new + path.removeprefix(old)
    return path


def value_of_today(path: str, value: Any, kind: str, *, where: str) -> Any:
    """The value of today for one at a dotted path that may use an earlier name of it.

    Args:
        path: as the user wrote it, of today or earlier.
        kind: key of `EARLIER_NAMES`.
    """
    for old, new in EARLIER_NAMES[kind].items():
        field, _, named = old.partition("=")
        if named and field == path and named == value:
            _say([(old, new)], where)
            return new.partition("=")[2]
    return value


def _say(moved: Iterable[tuple[str, str]], where: str) -> None:
    texts = [f"{old} is {f'called {new} now' if new else 'read no more'}" for old, new in moved]
    if texts:
        # From one place in the code, so that Python shows the same note once.
        warnings.warn(f"{where}: {', '.join(texts)}", FutureWarning, stacklevel=1)


def _move(raw: dict[str, Any], old: str, new: str, *, where: str) -> bool:
    """Move one value, and the text of its source; whether there was one to move."""
    path, _, value = old.partition("=")
    *parents, last = path.split(".")
    holder = _fields(raw, parents)
    if holder is None or last not in holder:
        return False
    if value:
        if holder[last] != value:
            return False
        holder[last] = new.partition("=")[2]
        return True
    sources = holder.get("sources")
    if not new:
        del holder[last]
        if isinstance(sources, dict):
            sources.pop(last, None)
        return True
    *new_parents, new_last = new.split(".")
    target = _fields(raw, new_parents, make=True)
    if target is None:
        return False  # Not fields at all: validation says so.
    if new_last in target:
        raise ValueError(f"{where}: {old} is called {new} now; allowed: one of the two")
    target[new_last] = holder.pop(last)
    if isinstance(sources, dict) and last in sources:
        of_target = target.setdefault("sources", {})
        if isinstance(of_target, dict):
            of_target[new_last] = sources.pop(last)
    return True


def _fields(raw: Any, keys: Iterable[str], *, make: bool = False) -> dict[str, Any] | None:
    """The fields that lie at some keys, made where there are none yet; None for anything else."""
    for key in keys:
        if not isinstance(raw, dict):
            return None
        if make and raw.get(key) is None:
            raw[key] = {}
        raw = raw.get(key)
    return raw if isinstance(raw, dict) else None
