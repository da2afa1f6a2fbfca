"""Files of profiles: shipped ones by name, a user's by path, older ones as those of today."""

import os
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hardware_profiles.fields import ROOT, Raw, plain_copy, read_yaml
from hardware_profiles.renames import EARLIER_NAMES, file_of_today, with_names_of_today
from hardware_profiles.suggestions import meant_or_known
from hardware_profiles.whole_files import real_path

ProfileKind = Literal["gpus", "clusters", "calibrations", "transports"]
"""Folders of shipped profiles."""

_FIELD_OF_FOLDER = {
    "gpus": "GPU",
    "clusters": "cluster",
    "calibrations": "calibration",
    "transports": "transport",
}


@cache
def known_profiles(kind: ProfileKind) -> tuple[str, ...]:
    """Names of the shipped profiles of one kind, sorted; no file comes or goes while a process
    runs."""
    files = os.listdir(ROOT / kind)
    return tuple(sorted(f.removesuffix(".yaml") for f in files if f.endswith(".yaml")))


def read_profile(kind: ProfileKind, name_or_path: str) -> tuple[Raw, str]:
    """Read one YAML file as a plain dict, and say what to call it in messages.

    A text with a slash or the ending .yaml is a path; anything else names a shipped profile.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path, where = Path(name_or_path), name_or_path
    else:
        name_or_path = file_of_today(name_or_path, kind)
        path, where = ROOT / kind / f"{name_or_path}.yaml", f"{kind}/{name_or_path}.yaml"
        if name_or_path not in known_profiles(kind):
            meant = meant_or_known(
                name_or_path, known_profiles(kind), otherwise="a path to a .yaml file"
            )
            raise ValueError(f"unknown {_FIELD_OF_FOLDER[kind]} {name_or_path!r}; {meant}")
        return read_yaml(path, where=where), where
    raw = read_yaml(path, where=where)
    if kind in EARLIER_NAMES:
        raw = with_names_of_today(raw, kind, where=where)
    if kind == "clusters":
        return _gpu_beside(raw, path), where
    return _completed(files_beside(raw, path)) if kind == "calibrations" else raw, where


def achieved_rates(transport: str) -> Raw:
    """What a transport, by shipped name or path, achieves of the links' rates; of NICs that it has
    no rows of, what the transport that it names does.

    Raises ValueError for an unknown one, and for a name of one that names another itself.
    """
    achieved, where = _achieved(transport)
    named = achieved.get("nic")
    if not isinstance(named, str):
        return achieved
    nic = _achieved(named)[0].get("nic")
    if isinstance(nic, str):
        raise ValueError(
            f"{where}: achieved.nic: {named} names {nic} itself; allowed: a transport that states "
            "what its NICs achieve"
        )
    return achieved | {"nic": nic}


def _achieved(transport: str) -> tuple[Raw, str]:
    raw, where = read_profile("transports", transport)
    achieved = raw.get("achieved")
    if not isinstance(achieved, dict):
        raise ValueError(f"{where}: achieved: {achieved!r}; allowed: nic and nvlink, each a share")
    return achieved, where


_NAMING_FILES = ("collectives", "normal_kernels", "low_latency_kernels")
"""Fields of a calibration that name a file of transfers."""


def files_beside(raw: Raw, path: Path) -> Raw:
    """A calibration's dict with the files that it names from its own folder (./rows.csv) in full.

    Args:
        path: of the calibration.
    """

    def full(name: Any) -> Any:
        return _full(name, path)

    tables = raw.get("measurements")
    rows = {"measurements": [full(name) for name in tables]} if isinstance(tables, list) else {}
    return raw | rows | {name: full(raw[name]) for name in _NAMING_FILES if name in raw}


def _gpu_beside(raw: Raw, path: Path) -> Raw:
    """A cluster's dict with the GPU that it names from its own folder (./gpu.yaml) in full."""
    node = raw.get("node")
    if not isinstance(node, dict) or "gpu" not in node:
        return raw
    return raw | {"node": node | {"gpu": _full(node["gpu"], path)}}


def _full(name: Any, path: Path) -> Any:
    """A path beside a file (./rows.csv) in full; any other value as it is."""
    near = isinstance(name, str) and name.startswith(("./", "../"))
    return str(real_path(real_path(path).parent / name)) if near else name


_LATER_FIELDS = (
    "tiles",
    "other_gpu",
    "common_share",
    "all_to_all.sms_per_channel",
    "all_to_all.limited_by_nvlink",
    "all_to_all.nvlink_latency",
    "all_to_all.network_latency",
)
"""Fields of calibrations that files written before these were fields lack."""


def _completed(raw: Raw) -> Raw:
    """A user's calibration with the fields that older files lack, from its GPU's shipped one.

    Until they became fields, every calibration was used with just these values. The source of each
    says where it comes from; a GPU without a shipped calibration leaves the file as it is.
    """
    gpu = raw.get("gpu")
    if not isinstance(gpu, str) or gpu not in known_profiles("calibrations"):
        return raw
    shipped, _ = read_profile("calibrations", gpu)
    taken = f"as in the shipped calibration {gpu}, because this file does not state it: "
    completed = plain_copy(raw)
    for path in _LATER_FIELDS:
        *parents, field = path.split(".")
        into, of = completed, shipped
        for parent in parents:
            into, of = into.get(parent, {}), of[parent]
        if not isinstance(into, dict) or field in into:
            continue
        value = into[field] = plain_copy(of[field])
        if isinstance(value, dict) and "source" in value:
            value["source"] = taken + value["source"]
        elif isinstance(value, dict):
            value["sources"] = {name: taken + text for name, text in value["sources"].items()}
        else:
            sources = into["sources"] = into.get("sources") or {}
            if isinstance(sources, dict):
                sources[field] = taken + of["sources"][field]
    return completed
