"""Predict how long DeepSeek-V3-class models take on a GPU cluster, and where the time goes.

    from simulator import load_scenario, simulate

    run = simulate(load_scenario("dualpipe_h800_2048", ["training.schedule=zb_h1"]))
    print(run.metrics["step_time_s"])

load_scenario   read a shipped scenario or a file, with changes "path=value"
simulate        run a scenario: the same one gives the same Run
Run             a scenario and what came of it: metrics, and the log they are taken from
Metric          a figure of a run: name, unit, meaning, which way is better
sweep           run a scenario at all combinations of some values
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.analysis.metric import Metric
    from simulator.analysis.run import Run, simulate
    from simulator.analysis.sweep import sweep
    from simulator.scenario.files import load_scenario

_HOMES = {
    "load_scenario": "simulator.scenario.files",
    "simulate": "simulator.analysis.run",
    "Run": "simulator.analysis.run",
    "Metric": "simulator.analysis.metric",
    "sweep": "simulator.analysis.sweep",
}

__all__ = ["Metric", "Run", "load_scenario", "simulate", "sweep"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: a job loads only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
