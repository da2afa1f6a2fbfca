"""Profiles of servers that keep routed experts in CPU memory and the rest on one GPU."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveFloat

from hardware_profiles.fields import (
    ROOT,
    BandwidthValue,
    Count,
    DataValue,
    Profile,
    read_yaml,
    to_profile,
)
from hardware_profiles.schema import HostProfile

FOLDER = ROOT / "servers"


class OffloadGpuProfile(Profile):
    """The one GPU of the server."""

    name: str
    memory_capacity: DataValue
    memory_bandwidth: BandwidthValue
    pcie_bandwidth: BandwidthValue
    """Per direction."""


class DecodeRow(Profile):
    """A published decode speed of the server."""

    sockets: Count
    experts_per_token: Count
    tokens_per_second: PositiveFloat
    source: str


class OffloadServerProfile(HostProfile):
    """A host with one GPU; its decode rows are what the model of it is fitted to and held to."""

    name: str
    gpu: OffloadGpuProfile
    routed_expert_bytes: DataValue
    """All routed experts of the model in the precision that the server keeps them in."""
    resident_bytes_per_parameter: PositiveFloat
    """Of the weights on the GPU."""
    fitted_rows: tuple[DecodeRow, DecodeRow]
    """One socket, two numbers of experts a token: they give the expert rate and the fixed time."""
    held_out_rows: tuple[DecodeRow, ...]
    """Rows that are predicted, never fitted."""


def known_servers() -> tuple[str, ...]:
    """Names of the shipped servers, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_server(name_or_path: str) -> OffloadServerProfile:
    """Load a server by shipped name or by path. Raises ValueError, one line, for anything wrong."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path, where = Path(name_or_path), name_or_path
    else:
        path, where = FOLDER / f"{name_or_path}.yaml", f"servers/{name_or_path}.yaml"
        if name_or_path not in known_servers():
            raise ValueError(
                f"unknown server {name_or_path!r}; known: {', '.join(known_servers())}; "
                "or give a path to a .yaml file"
            )
    return to_profile(OffloadServerProfile, read_yaml(path, where=where), where=where)
