"""The names that files and commands may use, each with a line on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hardware_profiles.schema import (
    known_calibrations,
    known_clusters,
    known_gpus,
    load_calibration,
    load_cluster,
    load_gpu,
)
from hardware_profiles.units import format_bandwidth, format_bytes
from reference_model.config import load_model_config, shipped_configs
from reference_model.parameter_counts import parameter_counts
from simulator.scenario.files import SCENARIOS, known_scenarios
from simulator.workload.schedules.known import SCHEDULES

Described = Mapping[str, str]
"""{name: a line on it}"""


def scenarios() -> Described:
    """Shipped scenarios by their own descriptions."""
    from hardware_profiles.fields import read_yaml

    # Read and not loaded: what a description says needs no cluster and no calibration.
    return {
        name: str(read_yaml(SCENARIOS / f"{name}.yaml", where=name).get("description"))
        for name in known_scenarios()
    }


def models() -> Described:
    """Shipped models with their sizes."""
    described = {}
    for name in shipped_configs():
        config = load_model_config(name)
        counts = parameter_counts(config)
        described[name] = (
            f"{config.num_hidden_layers} layers, {counts.total:,} parameters, "
            f"{counts.activated:,} activated"
        )
    return described


def gpus() -> Described:
    """Shipped GPUs with what their datasheets say."""
    return {
        name: f"{gpu.sms} SMs, {format_bytes(gpu.hbm_capacity)} at "
        f"{format_bandwidth(gpu.hbm_bandwidth)}, NVLink {format_bandwidth(gpu.nvlink_bandwidth)}"
        for name in known_gpus()
        for gpu in [load_gpu(name)]
    }


def clusters() -> Described:
    """Shipped clusters with their sizes."""
    return {
        name: f"{cluster.nodes} nodes x {cluster.node.gpus} {cluster.node.gpu.name}"
        for name in known_clusters()
        for cluster in [load_cluster(name)]
    }


def calibrations() -> Described:
    """Shipped calibrations and what their kernel times rest on."""
    return {
        name: f"{profile.gpu}, {profile.basis}, {len(profile.fits)} families judged"
        for name in known_calibrations()
        for profile in [load_calibration(name)]
    }


def schedules() -> Described:
    """Pipeline schedules by the first lines of their docstrings."""
    return {
        name: (build.__doc__ or "").strip().partition("\n")[0] for name, build in SCHEDULES.items()
    }


NAMES: Mapping[str, Callable[[], Described]] = {
    "scenarios": scenarios,
    "models": models,
    "gpus": gpus,
    "clusters": clusters,
    "calibrations": calibrations,
    "schedules": schedules,
}
"""{what is listed: its names}"""
