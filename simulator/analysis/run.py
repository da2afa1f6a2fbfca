"""Simulate a scenario and say what came of it.

A new kind of job adds one function here and a line in SIMULATED. Imports stay inside the functions,
so that a run loads only what its own job needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from simulator.execution.progress import Watch, unwatched
from simulator.scenario.files import Scenario, load_scenario, with_changes
from simulator.workload.recorded import traces_in

if TYPE_CHECKING:
    from simulator.analysis.fleet_metrics import ObservedFleet
    from simulator.analysis.pretraining import PretrainingRun
    from simulator.analysis.profile_replay import Replay
    from simulator.execution.bounds import TpotLimit
    from simulator.execution.collective import CollectiveResult
    from simulator.execution.machine.group import GroupRun
    from simulator.execution.offload import OffloadStep
    from simulator.execution.serving_run import ServingRun
    from simulator.execution.training import TrainingRun
    from simulator.hardware.costs import KernelCostModel
    from simulator.scenario.events import Channel

    AnyResult: TypeAlias = (
        TrainingRun
        | PretrainingRun
        | ServingRun
        | ObservedFleet
        | CollectiveResult
        | TpotLimit
        | OffloadStep
        | Replay
    )

Result_co = TypeVar("Result_co", covariant=True)

Metrics: TypeAlias = dict[str, Any]

Detail: TypeAlias = Literal["plain", "tables", "intervals"]
"""How much of a run is worked out: its single figures, its tables too, or 80% intervals too."""

WITHOUT_SLOWDOWN = "without_all_to_all_slowdown"
"""Metrics of the training step whose dispatch and combine nothing slows, a step of its own."""

STEP_TIMES = ("step_time_s", "pass_time_s")
"""Metrics of the jobs that kernel times decide: a training or decode step, a prefill pass."""


@dataclass(frozen=True)
class Run(Generic[Result_co]):
    """A scenario and what its simulation gave."""

    scenario: Scenario
    result: Result_co = field(repr=False)
    """Of the job: its log, memory, comparisons; what the metrics are taken from."""
    measure: Callable[[Detail], Metrics] = field(repr=False)
    """The metrics of the result."""
    has_intervals: bool = True
    events: GroupRun | None = field(default=None, repr=False)
    """The ranks of a group on contending devices, of a step with fidelity events."""

    @cached_property
    def metrics(self) -> Metrics:
        """{JSON name: value} in SI units, with 80% intervals where the job has them."""
        return self.measure("intervals") if self.has_intervals else self.quick_metrics

    @cached_property
    def quick_metrics(self) -> Metrics:
        """The same without 80% intervals, for speed."""
        return self.measure("tables")

    @cached_property
    def plain_metrics(self) -> Metrics:
        """The same without what takes steps of its own, such as a step's attribution: every
        single figure of the run itself, for rows of a sweep."""
        return vars(self).get("quick_metrics") or self.measure("plain")

    def metrics_in(self, detail: Detail) -> Metrics:
        """The metrics in as much detail as is asked for."""
        if detail == "plain":
            return self.plain_metrics
        return self.quick_metrics if detail == "tables" else self.metrics

    def to_json(self, *, intervals: bool = True) -> Metrics:
        """Everything that `dsv3sim run` prints and writes of this run.

        Args:
            intervals: whether to work out 80% intervals, and the same serving step with other
                kernels.
        """
        scenario = self.scenario
        shown = dict(self.metrics if intervals else self.quick_metrics)
        shown["scenario"] = {
            "name": scenario.name,
            "job": scenario.job_name,
            "changes": list(scenario.changes),
            "published_for_other_inputs": list(scenario.figures_left_out),
        }
        # Of a training step it would take three times as long as the step itself.
        if intervals and scenario.job_name == "serving_step":
            shown["other_kernels"] = self.other_kernels()
        return shown

    def keep_kernel_times(self) -> None:
        """Keep the kernel times of a step, or of a fleet's steps, for the user's next process."""
        result: Any = self.result
        name = self.scenario.job_name
        if name == "training":
            result.costs.keep_times()
        elif name == "serving_step":
            result.step.model.kernels.costs.keep_times()
        elif name == "fleet":
            result.simulation.keep_times()

    def other_kernels(self) -> Metrics | None:
        """What a step takes with kernels of the other kind, of an engine or of the reference model;
        None where no shipped calibration has them for the scenario's job."""
        from simulator.analysis.kernels_used import other_calibration
        from simulator.execution.serving_run import expected_serving_seconds

        other = other_calibration(self.scenario)
        if other is None:
            return None
        named = {"calibration": other.name, "kind": other.kernels and other.kernels.kind}
        try:
            changed = with_changes(self.scenario, {"calibration": other.name})
            result: Any = self.result
            traces = traces_in(changed.file.traces)
            seconds = expected_serving_seconds(changed, traces, like=result.draws)
        except ValueError as error:
            return named | {"reason": str(error)}
        # The times are the same with intervals and without.
        known = vars(self).get("metrics") or self.quick_metrics
        path = next(name for name in STEP_TIMES if known.get(name) is not None)
        return named | {"metric": path, "seconds": seconds, "ratio": seconds / known[path]}


def simulate(
    scenario: Scenario, *, unfold: bool = False, watch: Watch = unwatched
) -> Run[AnyResult]:
    """Run the job of a scenario; the same scenario gives the same run.

    Args:
        unfold: list every operator of every rank, not only those of each distinct chunk; of a
            training step only.
        watch: told how far a simulation that takes long has come.

    Raises:
        ValueError: anything that the user can mend.
    """
    if unfold and scenario.job_name != "training":
        raise ValueError(f"--unfold: a {scenario.job_name} job has nothing to unfold")
    cluster = scenario.named_cluster
    simulated = scenario.job_name in ("collective", "serving_step", "training")
    if cluster is not None and cluster.failures and not simulated:
        raise ValueError(
            f"{scenario.where}: cluster.failures: {', '.join(cluster.failures)}: a "
            f"{scenario.job_name} job does not simulate failures of the fabric; allowed: none"
        )
    return SIMULATED[scenario.job_name](scenario, unfold, watch)


def metrics_of(scenario: str, overrides: Sequence[str], *, detail: Detail = "plain") -> Metrics:
    """Load and simulate a scenario: its metrics in this detail; intervals are several times the
    work.

    Earlier names of fields bring no note here: a command that runs many scenarios has read them
    before, and processes that share its work would each repeat it.

    Raises:
        ValueError: anything that the user can mend, or that makes the run impossible.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return simulated_metrics(load_scenario(scenario, overrides), detail=detail)


def simulated_metrics(scenario: Scenario, *, detail: Detail = "plain") -> Metrics:
    """`metrics_of` of a scenario that is loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return simulate(scenario).metrics_in(detail)


def price_kernels(scenarios: Sequence[Scenario]) -> None:
    """Work out kernel times of training scenarios that differ in rates of the GPU alone, for all of
    them at once: those that a scenario before has asked for."""
    training = [each for each in scenarios if each.job_name == "training"]
    if training:
        from simulator.execution.training_run import price_kernels_of

        price_kernels_of(training)


def _training(scenario: Scenario, unfold: bool, _: Watch) -> Run[TrainingRun]:
    from simulator.analysis.training_metrics import training_metrics
    from simulator.execution.training_run import simulate_training

    result = simulate_training(scenario, traces_in(scenario.file.traces), unfold=unfold)

    def run_with(channels: Collection[Channel]) -> GroupRun:
        from simulator.execution.machine.training import run_group

        return run_group(result, result.step.pair, channels)

    events, measure = _events(scenario, result.costs, run_with)
    if scenario.file.events.of == "step":
        from simulator.execution.machine.training import contending_step_s

        known = measure()["events"]
        known["step_time_s"] = contending_step_s(result, scenario.file.events.contention)
        known["timeline_step_time_s"] = result.step.step_time_s
        measure = partial(dict, events=known)
    return Run(
        scenario,
        result,
        lambda detail: (
            training_metrics(
                result, with_intervals=detail == "intervals", with_further_steps=detail != "plain"
            )
            | measure()
        ),
        events=events,
    )


def _events(
    scenario: Scenario,
    costs: KernelCostModel,
    run_with: Callable[[Collection[Channel]], GroupRun],
) -> tuple[GroupRun | None, Callable[[], Metrics]]:
    """The step on contending devices, and its metrics; neither of a run on the timeline."""
    if scenario.file.fidelity == "timeline":
        return None, dict
    from simulator.analysis.events_metrics import events_metrics
    from simulator.execution.machine.group import contending
    from simulator.execution.machine.launches import hbm_rate

    inputs, gpu = scenario.file.events, scenario.cluster.node.gpu
    group, hbm = contending(run_with, inputs), hbm_rate(gpu, costs)
    return group, lambda: {"events": events_metrics(group, gpu, hbm, scenario.calibration)}


def _pretraining(scenario: Scenario, _: bool, watch: Watch) -> Run[PretrainingRun]:
    from simulator.analysis.pretraining import simulate_pretraining
    from simulator.analysis.pretraining_metrics import pretraining_metrics

    result = simulate_pretraining(scenario, watch)
    return Run(scenario, result, lambda _: pretraining_metrics(result))


def _serving_step(scenario: Scenario, _unfold: bool, _: Watch) -> Run[ServingRun]:
    from simulator.analysis.serving_metrics import serving_metrics
    from simulator.execution.serving_run import simulate_serving_step

    result = simulate_serving_step(scenario, traces_in(scenario.file.traces))
    costs = result.step.model.kernels.costs

    def run_with(channels: Collection[Channel]) -> GroupRun:
        from simulator.execution.machine.serving import run_layers

        return run_layers(result.step, scenario.file.events, channels)

    events, measure = _events(scenario, costs, run_with)
    return Run(
        scenario,
        result,
        lambda detail: serving_metrics(result, with_intervals=detail == "intervals") | measure(),
        events=events,
    )


def _fleet(scenario: Scenario, _: bool, watch: Watch) -> Run[ObservedFleet]:
    from simulator.analysis.fleet_intervals import fleet_metrics_with_intervals
    from simulator.analysis.fleet_metrics import measure_fleet, observe_fleet
    from simulator.execution.fleet.simulation import prepare_fleet

    result = observe_fleet(prepare_fleet(scenario, watch), watch, keep=True)
    return Run(
        scenario,
        result,
        lambda detail: (
            fleet_metrics_with_intervals(result, watch)
            if detail == "intervals"
            else measure_fleet(result)
        ),
    )


def _collective(scenario: Scenario, _unfold: bool, _: Watch) -> Run[CollectiveResult]:
    from simulator.analysis.collective_metrics import collective_metrics
    from simulator.execution.collective import run_collective

    result, figures = run_collective(scenario), scenario.file.published
    return Run(scenario, result, lambda _: collective_metrics(result, figures), has_intervals=False)


def _tpot_limit(scenario: Scenario, _unfold: bool, _: Watch) -> Run[TpotLimit]:
    from simulator.analysis.serving_metrics import limit_metrics
    from simulator.execution.bounds import tpot_limit
    from simulator.scenario.serving import TpotLimitJob

    job = scenario.job_as(TpotLimitJob)
    result = tpot_limit(job, config=scenario.model, cluster=scenario.cluster)
    figures = scenario.file.published
    return Run(scenario, result, lambda _: limit_metrics(result, figures), has_intervals=False)


def _offload(scenario: Scenario, _unfold: bool, _: Watch) -> Run[OffloadStep]:
    from hardware_profiles.offload_servers import load_server
    from simulator.analysis.serving_metrics import offload_metrics
    from simulator.execution.offload import offload_step
    from simulator.scenario.serving import OffloadJob

    job = scenario.job_as(OffloadJob)
    server, config = load_server(job.server), scenario.model
    result = offload_step(job, server=server, config=config)
    return Run(
        scenario,
        result,
        lambda _: offload_metrics(result, server=server, config=config),
        has_intervals=False,
    )


def _replay(scenario: Scenario, _unfold: bool, _: Watch) -> Run[Replay]:
    from simulator.analysis.profile_replay import replay_metrics, run_replay

    result = run_replay(scenario)
    return Run(scenario, result, lambda _: replay_metrics(result), has_intervals=False)


SIMULATED: Mapping[str, Callable[[Scenario, bool, Watch], Run[AnyResult]]] = {
    "training": _training,
    "pretraining": _pretraining,
    "collective": _collective,
    "serving_step": _serving_step,
    "tpot_limit": _tpot_limit,
    "offload": _offload,
    "fleet": _fleet,
    "replay": _replay,
}
"""Job -> (scenario, whether to unfold, who watches) -> its run."""
