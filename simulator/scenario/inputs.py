"""Inputs that several kinds of job have, each under one name and in one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from hardware_profiles.estimates import Estimate, TimeEstimate
from hardware_profiles.fields import DataValue, Profile, read_yaml

SETTINGS = Path(__file__).with_name("skew_settings.yaml")
"""The named settings of `skew`; every value is that of docs/priors.md."""

NO_SKEW = "none"
"""The setting of ideal ranks: equal rows, equal GPUs, no waiting."""


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _share(value: object) -> object:
    """2% as 0.02; a number as it is."""
    text = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*%\s*", str(value))
    return float(text[1]) / 100 if text else value


ShareValue = Annotated[float, BeforeValidator(_share), Field(ge=0.0)]
"""A share or a relative deviation, as a number or as text with a percent sign."""


def _known_exactly(given: object) -> object:
    if isinstance(given, dict | Profile):
        return given
    return {"value": given, "low": given, "high": given, "source": "stated by the job"}


class Prior(Estimate):
    """An input that is drawn anew in every sample: its median, and the ends of its 80% interval.

    A bare value is known exactly.
    """

    value: ShareValue
    """Median of the draws."""
    low: ShareValue
    """Lower end of their 80% interval."""
    high: ShareValue
    """Upper end of it."""

    @model_validator(mode="before")
    @classmethod
    def _has_an_interval(cls, given: object) -> object:
        return _known_exactly(given)


def _at_least_one(prior: Prior) -> Prior:
    if prior.low < 1.0:
        raise ValueError(f"low {prior.low:g} is not allowed; allowed: at least 1")
    return prior


RatioPrior = Annotated[Prior, AfterValidator(_at_least_one)]
TimePrior = Annotated[TimeEstimate, BeforeValidator(_known_exactly)]


NONE = Prior(value=0.0, low=0.0, high=0.0, source="no skew")


class RowsOfRanks(Profile):
    """How many rows, one for each pair of a token and a routed expert, each rank gets."""

    form: Literal["balanced", "random", "popularity", "max_over_mean"] = "balanced"
    """balanced: every rank the mean. random: a gate that chooses at random. popularity: experts of
    unequal popularity where their placement puts them. max_over_mean: one rank of a group gets more
    than the others."""
    max_over_mean: RatioPrior | None = None
    """Rows of that rank over the mean of its group."""
    zipf_exponent: Prior | None = None
    """The r-th most popular expert of a layer gets rows in proportion to r^-exponent."""
    file: str | None = None
    """CSV file of popularity in its place, with the columns layer, expert and rows."""
    placed_for: str | None = None
    """CSV file of the popularity that placement knew; by default that of `drift` before."""
    drift: Prior | None = None
    """Sd of the logarithm of an expert's popularity as served over that of the placement."""
    changes: Literal["micro_batch", "step", "persistent"] = "micro_batch"
    """When other ranks get more: with every micro-batch and layer, with every step, or never. One
    step cannot tell the last two apart."""

    @model_validator(mode="after")
    def _has_what_its_form_needs(self) -> Self:
        given = [name for name in _OF_FORMS if getattr(self, name) is not None]
        foreign = [name for name in given if _OF_FORMS[name] != self.form]
        if foreign:
            raise ValueError(
                f"{foreign[0]} with form {self.form}; allowed: with form {_OF_FORMS[foreign[0]]}"
            )
        needed = {"max_over_mean": ("max_over_mean",), "popularity": ("zipf_exponent", "file")}
        wanted = needed.get(self.form, ())
        if wanted and sum(name in given for name in wanted) != 1:
            raise ValueError(f"form {self.form} needs exactly one of {', '.join(wanted)}")
        return self


_OF_FORMS = {
    "max_over_mean": "max_over_mean",
    "zipf_exponent": "popularity",
    "file": "popularity",
    "placed_for": "popularity",
    "drift": "popularity",
}
"""{field of RowsOfRanks: the form that it belongs to, and so need not be named with it}"""


class HostPause(Profile):
    """Times in which the host of a GPU launches nothing."""

    rate: Prior = NONE
    """Pauses of a GPU in a step, mean."""
    seconds: TimePrior = Field(default="0 s", validate_default=True)
    """Length of one pause."""


class SlowGpus(Profile):
    """Machines that are slower than the others."""

    share: Prior = NONE
    """Share of all machines that are slow."""
    slowdown: Prior = NONE
    """What every kernel of theirs takes longer, relative."""


RecipeName: TypeAlias = Literal[
    "fp8", "bfloat16", "int4", "int4_128", "fp8_per_tensor", "nvfp4", "nvfp4_o_proj", "mxfp8"
]
"""Names of simulator.workload.recipes.RECIPES."""


def full_recipe_name(name: object) -> object:
    """The name of a recipe that people write shorter."""
    return "bfloat16" if name == "bf16" else name


ServingRecipe: TypeAlias = Annotated[RecipeName | None, BeforeValidator(full_recipe_name)]
"""A recipe of serving; None stands for that of the model."""


class Skew(Profile):
    """What makes ranks wait for each other: rows, clocks, work and hosts that are not alike.

    A word names a setting, and a block takes from its `setting` what it leaves out. Deviations are
    relative standard deviations. Values, with their sources, stand in docs/priors.md.
    """

    setting: str = NO_SKEW
    """One of SETTINGS, or none."""
    rows: RowsOfRanks = RowsOfRanks()
    """How many rows, one for each pair of a token and a routed expert, each rank gets."""
    rows_sd: Prior = NONE
    """Of the rows of a rank in a layer, beyond what `rows` makes."""
    clock_sd: Prior = NONE
    """Of the SM clock between the GPUs of the cluster; a GPU keeps its own."""
    work_sd: Prior = NONE
    """Of a rank's attention work between micro-batches: lengths of documents or contexts."""
    host_pause: HostPause = HostPause()
    """Times in which the host of a GPU launches nothing."""
    slow_gpus: SlowGpus = SlowGpus()
    """Machines that are slower than the others."""

    @model_validator(mode="before")
    @classmethod
    def _from_its_setting(cls, given: object) -> object:
        block = {"setting": given} if isinstance(given, str) else given
        if not isinstance(block, dict):
            return given
        rows = block.get("rows")
        if isinstance(rows, str):
            block = block | {"rows": {"form": rows}}
        elif isinstance(rows, dict) and "form" not in rows:
            form = next((_OF_FORMS[name] for name in _OF_FORMS if rows.get(name) is not None), None)
            block = block | {"rows": ({"form": form} if form else {}) | rows}
        name = block.get("setting", NO_SKEW)
        if name == NO_SKEW or not isinstance(name, str):
            return block
        if name not in skew_settings():
            known = ", ".join((NO_SKEW, *skew_settings()))
            raise ValueError(f"setting: {name!r} is not known; allowed: {known}")
        return _completed(block, skew_settings()[name])

    @property
    def is_none(self) -> bool:
        """Whether all ranks are ideal, so that a run has nothing to draw."""
        spread = (self.rows_sd, self.clock_sd, self.work_sd)
        often = (self.host_pause.rate, self.slow_gpus.share)
        return self.rows.form == "balanced" and all(prior.high == 0 for prior in (*spread, *often))

    @property
    def max_over_mean(self) -> float:
        """Rows of the slowest rank over the mean where that is what `rows` states, else 1."""
        return 1.0 if self.rows.max_over_mean is None else self.rows.max_over_mean.value


def _of_setting(name: str, given: object) -> object:
    if isinstance(given, dict) and "setting" not in given:
        return {"setting": name} | given
    return given


TrainingSkew = Annotated[Skew, BeforeValidator(partial(_of_setting, "bias_balanced"))]
"""The skew of a training step; what names no setting is of real data, balanced by biases."""
ServingSkew = Annotated[Skew, BeforeValidator(partial(_of_setting, "eplb_with_drift"))]
"""The skew of a serving step; what names no setting is of production."""


@cache
def skew_settings() -> Mapping[str, dict[str, Any]]:
    """{name: fields, as the file says} of the settings that `skew` may name."""
    return read_yaml(SETTINGS, where=f"{SETTINGS.parent.name}/{SETTINGS.name}")


def _completed(block: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """A block with the setting's value of what it leaves out, however deep; a block of `rows` of
    another form takes none of that form's fields."""
    found = dict(setting) | block
    for name, own in block.items():
        of_setting = setting.get(name)
        if isinstance(own, dict) and isinstance(of_setting, dict):
            other = name == "rows" and own.get("form", of_setting["form"]) != of_setting["form"]
            left = {k: v for k, v in of_setting.items() if not (other and k in _OF_FORMS)}
            if own.get("file") is not None:
                # A recorded popularity takes the place of the setting's law.
                left.pop("zipf_exponent", None)
            found[name] = _completed(own, left)
    return found


class Experts(Profile):
    """Where routed experts lie."""

    redundant: NonNegativeInt = 0
    """Slots beyond one for each routed expert."""


class Memory(Profile):
    """What fills the memory of a GPU beside weights and what a job works on."""

    reserved: DataValue
    """CUDA context, graphs, libraries, fragmentation and communication buffers that the job does
    not state by themselves."""


class SpeculativeDecoding(Profile):
    """Multi-token prediction used to draft tokens that the next step verifies."""

    draft_tokens: PositiveInt
    """Tokens drafted for each request and step."""
    acceptance: float = Field(ge=0.0, le=1.0)
    """Probability that a drafted token is accepted, given that those before it were."""

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens that a request gains in a step: 1 + a + a^2 + ..."""
        return sum(self.acceptance**depth for depth in range(self.draft_tokens + 1))
