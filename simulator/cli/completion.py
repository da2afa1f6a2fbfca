"""What a shell completes: names of files that are shipped, metrics, and fields for --set."""

from __future__ import annotations

from collections.abc import Iterable


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def scenario_names(incomplete: str) -> list[str]:
    """Shipped scenarios."""
    from simulator.scenario.files import known_scenarios

    return _beginning(incomplete, known_scenarios())


def gpu_names(incomplete: str) -> list[str]:
    """Shipped GPUs."""
    from hardware_profiles.schema import known_gpus

    return _beginning(incomplete, known_gpus())


def cluster_names(incomplete: str) -> list[str]:
    """Shipped clusters."""
    from hardware_profiles.schema import known_clusters

    return _beginning(incomplete, known_clusters())


def calibration_names(incomplete: str) -> list[str]:
    """Shipped calibrations."""
    from hardware_profiles.schema import known_calibrations

    return _beginning(incomplete, known_calibrations())


def model_names(incomplete: str) -> list[str]:
    """Shipped models."""
    from reference_model.config import shipped_configs

    return _beginning(incomplete, shipped_configs())


def schedule_names(incomplete: str) -> list[str]:
    """Pipeline schedules."""
    from simulator.workload.schedules.known import SCHEDULES

    return _beginning(incomplete, SCHEDULES)


def metric_names(incomplete: str) -> list[str]:
    """Metrics of all jobs."""
    from simulator.analysis.every_metric import METRICS

    return _beginning(incomplete, dict.fromkeys(name for of in METRICS.values() for name in of))


def field_paths(incomplete: str) -> list[str]:
    """Paths of fields, with blocks of fields among them."""
    from simulator.scenario.describe import scenario_fields

    return _beginning(incomplete, (field.path for field in scenario_fields()))


def settings(incomplete: str) -> list[str]:
    """What --set takes: a path, and after its "=" the values of a field that has only some."""
    from simulator.scenario.describe import NAMED_FILES, scenario_fields

    path, equals, begun = incomplete.partition("=")
    if not equals:
        return [f"{one}=" for one in field_paths(incomplete)]
    shipped = {
        "model": model_names,
        "cluster": cluster_names,
        "gpu": gpu_names,
        "calibration": calibration_names,
        "schedule": schedule_names,
    }
    last = path.rpartition(".")[2]
    if last in shipped and (last == "schedule" or last in NAMED_FILES):
        return [f"{path}={name}" for name in shipped[last](begun)]
    found = next((field for field in scenario_fields() if field.path == path), None)
    kinds = () if found is None else found.kinds
    choices = [str(choice) for kind in kinds for choice in kind.choices]
    if any(kind.name == "true or false" for kind in kinds):
        choices += ["true", "false"]
    return [f"{path}={choice}" for choice in _beginning(begun, choices)]
