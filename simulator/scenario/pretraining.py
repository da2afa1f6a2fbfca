"""PretrainingJob: a whole training run, its phases, failures and checkpoints, as a file states it.

Every phase names a scenario whose training job is its step, or states how long a step takes. What
fails, how checkpoints are written and what happens when no spare node is left are inputs.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from hardware_profiles.estimates import TimeEstimate
from hardware_profiles.fields import BandwidthValue, DataValue, Profile, TimeValue
from hardware_profiles.units import unit_factor

Tokens = Annotated[float, Field(gt=0.0)]
GpuHours = Annotated[float, Field(gt=0.0)]

HOUR = unit_factor("h", "time")
"""Seconds."""


class BatchPoint(Profile):
    """A size of the batch at which the step is simulated."""

    sequences: PositiveInt
    """Of one step, over all pipelines."""
    changes: tuple[str, ...] = ()
    """Texts "path=value" that this size needs, such as "training.schedule=zb_h1"."""


class WarmUp(Profile):
    """Growing the batch over the first tokens of a phase, linearly in the tokens seen."""

    sequences: PositiveInt
    """Sequences of the first step."""
    tokens: Tokens
    """After which the batch has its full size."""
    points: tuple[BatchPoint, ...] = ()
    """Sizes that are simulated beside the full one; steps between two take times on the line
    between theirs. Without the first size among them, it is simulated as it is."""


class StatedStep(Profile):
    """A step that is not simulated."""

    time: TimeEstimate
    """Time of one step."""
    sequences: PositiveInt
    """Sequences of one step, over all pipelines."""
    sequence_length: PositiveInt
    """Tokens of a sequence."""
    replicas: PositiveInt = 1
    """Parts that can train without each other, each with all parameters."""
    state: DataValue | None = None
    """Master weights and optimizer state of the whole model, which a checkpoint holds."""


class TrainingPhase(Profile):
    """A stretch of the run with one sequence length and layout."""

    name: str
    """What the stretch is called in tables."""
    tokens: Tokens
    """Trained on in this phase."""
    scenario: str | None = None
    """Shipped scenario or path whose training job is the step; its model and cluster are the
    run's."""
    changes: tuple[str, ...] = ()
    """Texts "path=value" of that scenario, as with --set."""
    stated: StatedStep | None = None
    """In the place of a scenario."""
    warm_up: WarmUp | None = None
    """Growing the batch over the first tokens of the phase; none: the full size from its first step
    on."""

    @model_validator(mode="after")
    def _has_one_step(self) -> Self:
        if (self.scenario is None) == (self.stated is None):
            raise ValueError(f"phase {self.name!r}: allowed: either scenario or stated")
        if self.stated and (self.changes or self.warm_up):
            raise ValueError(
                f"phase {self.name!r}: changes and warm_up are of a scenario, which it has not"
            )
        if self.warm_up and self.warm_up.tokens > self.tokens:
            raise ValueError(
                f"phase {self.name!r}: warm_up.tokens {self.warm_up.tokens:g}; allowed: at most "
                f"its tokens, {self.tokens:g}"
            )
        return self


class FailureKind(Profile):
    """Something that stops the run."""

    gpu_hours_between: GpuHours
    """Mean GPU-hours between two of them; times between two are exponential."""
    detection: TimeValue
    """From the failure until the run is stopped."""
    replaces_node: bool
    """Whether a node is taken out and repaired."""

    def rate(self, gpus: int) -> float:
        """Failures per second of a run on so many GPUs."""
        return gpus / HOUR / self.gpu_hours_between


class SlowNodes(Profile):
    """Nodes that become slow without failing; every other node waits for them."""

    gpu_hours_between: GpuHours
    """Mean GPU-hours between two nodes that become slow; times between two are exponential."""
    slowdown: float = Field(gt=1.0)
    """Step time with a slow node over the usual one."""
    found_after: TimeValue
    """Until it is replaced: a checkpoint, a restart and a reload, without work lost."""


class Checkpoint(Profile):
    """How the state of the run is saved."""

    interval: TimeValue | Literal["optimal"] = "optimal"
    """Training between two, in whole steps; "optimal": Daly's, for the failures of the run, or as
    long as writing in the background takes where that is longer."""
    size: DataValue | None = None
    """By default the master weights and optimizer state of the step."""
    write_bandwidth_per_node: BandwidthValue
    """At which a node writes its part of the state."""
    read_bandwidth_per_node: BandwidthValue | None = None
    """By default as for writing."""
    overlapped: bool
    """Whether training goes on while a copy in host memory is written; it stops for the copy."""
    copy_bandwidth_per_gpu: BandwidthValue | None = None
    """From GPU to host memory, of overlapped ones."""

    @model_validator(mode="after")
    def _copies_where_overlapped(self) -> Self:
        if self.overlapped and self.copy_bandwidth_per_gpu is None:
            raise ValueError("copy_bandwidth_per_gpu is missing; overlapped checkpoints need it")
        return self


class Spares(Profile):
    """Nodes that stand by, and what happens when none is left."""

    nodes: NonNegativeInt
    """Nodes that stand by."""
    repair: TimeValue
    """Until a node that was taken out is a spare again."""
    exhausted: Literal["wait", "shrink"] = "wait"
    """"wait" for a repair; "shrink": go on without one data-parallel part until then."""


class PretrainingJob(Profile):
    """A whole training run on all GPUs of the cluster."""

    phases: tuple[TrainingPhase, ...] = Field(min_length=1)
    """Stretches of the run, each with one sequence length and layout, one after the other."""
    gpus: PositiveInt | None = None
    """By default all of the cluster; of stated steps only, on more than one cluster holds."""
    failures: dict[str, FailureKind] = Field(default_factory=dict)
    """What stops the run, by names of your own."""
    slow_nodes: SlowNodes | None = None
    """Nodes that become slow without failing; every other node waits for them."""
    restart: TimeValue = 0.0
    """From the stop until state is reloaded: scheduling, start of processes, communicators,
    compilation."""
    checkpoint: Checkpoint | None = None
    """How the state of the run is saved; a run that fails needs it."""
    spares: Spares | None = None
    """Without any, a node that is taken out is repaired at once."""
    runs: PositiveInt = 200
    """Of different seeds, each with its own failures and step time."""

    @model_validator(mode="after")
    def _can_recover(self) -> Self:
        if self.checkpoint is None and (self.failures or self.slow_nodes):
            raise ValueError(
                "checkpoint is missing; a run that fails needs it, or failures={} and no slow_nodes"
            )
        names = [phase.name for phase in self.phases]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"phases: two are called {twice!r}; allowed: names that differ")
        return self
