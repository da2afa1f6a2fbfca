"""Scenario: a YAML file with its --set overrides, validated and ready to simulate.

A scenario names a model, a cluster and a calibration and holds one job. Names of schedules,
topologies and cost models stay text here; execution.simulation resolves them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import yaml

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.fields import (
    Profile,
    Raw,
    apply_overrides,
    plain_copy,
    read_yaml,
    to_profile,
)
from hardware_profiles.profile_files import ProfileKind, read_profile
from hardware_profiles.renames import value_of_today, with_names_of_today
from hardware_profiles.schema import (
    CalibrationProfile,
    ClusterProfile,
    GpuProfile,
    override_calibration,
    override_gpu,
    resolve_cluster,
)
from hardware_profiles.suggestions import as_written, closest, did_you_mean, meant_or_known
from hardware_profiles.whole_files import read_text
from reference_model.config import ModelConfig, parse_model_config, read_config_file
from simulator.scenario.axes import file_axes, points
from simulator.scenario.changes import (
    differences,
    digest,
    directory_name,
    effective,
    matters,
    shown,
)
from simulator.scenario.events import EventsInputs
from simulator.scenario.overrides import check_paths, full_path, parse_override, rooted
from simulator.scenario.scenario_file import (
    FIELDS,
    JOBS,
    NAMED,
    JobT,
    ScenarioFile,
    job_type,
    name_of_job,
)

if TYPE_CHECKING:
    from simulator.scenario.scenario_file import Job

_T = TypeVar("_T")

SCENARIOS = Path(__file__).parent / "shipped"
"""Folder of the shipped scenarios."""


STAGES_ARE_OF = ("model", "training.pp", "training.schedule", "training.virtual_stages")
"""What the stages that a file spells out are written for."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A validated scenario, with all that it names loaded.

    Which of model, cluster and calibration a scenario needs depends on its job; asking for one that
    it does not name raises ValueError.
    """

    name: str
    """Of the file, with what a run changes of it: "a_job with training.pp=8"."""
    where: str
    """How messages call the file."""
    directory_name: str
    """Name for the directory of its runs: one for each set of changes."""
    file: ScenarioFile
    job: Job
    named_model: ModelConfig | None
    named_cluster: ClusterProfile | None
    named_gpu: GpuProfile | None
    named_calibration: CalibrationProfile | None
    resolved: Raw
    """The scenario as one self-contained mapping, units as text; loads to the same scenario."""
    changes: tuple[str, ...] = ()
    """Texts "path=value" of the overrides that make it another than its file."""
    figures_left_out: tuple[str, ...] = ()
    """Names of published figures that are not of this scenario's inputs."""
    other_inputs: tuple[str, ...] = ()
    """Paths at which it differs from theirs."""

    @property
    def job_name(self) -> str:
        """What its file calls the job: one of JOBS."""
        return name_of_job(type(self.job))

    def job_as(self, kind: type[JobT]) -> JobT:
        """The job, where it is of a kind. Raises ValueError where it is of another."""
        if not isinstance(self.job, kind):
            raise ValueError(
                f"{self.where}: holds a {self.job_name} job; allowed here: {name_of_job(kind)}"
            )
        return self.job

    @property
    def model(self) -> ModelConfig:
        return self._needed("model", self.named_model)

    @property
    def cluster(self) -> ClusterProfile:
        return self._needed("cluster", self.named_cluster)

    @property
    def calibration(self) -> CalibrationProfile:
        return self._needed("calibration", self.named_calibration)

    def _needed(self, field: str, value: _T | None) -> _T:
        if value is None:
            raise ValueError(f"{self.where}: {field} is missing; a {self.job_name} job needs it")
        return value


@cache
def known_scenarios() -> tuple[str, ...]:
    """Names of the shipped scenarios, sorted."""
    return tuple(sorted(path.stem for path in SCENARIOS.glob("*.yaml")))


def load_scenario(name_or_path: str, overrides: Sequence[str] = ()) -> Scenario:
    """Load a scenario by shipped name or by path to a YAML file.

    Args:
        overrides: texts "path=value", value read as YAML: "training.schedule=zb_h1",
            "cluster.node.nic.bandwidth=200 Gbit/s", "cluster=h100_2048".

    Raises:
        ValueError: one line naming file, field, value and what is allowed.
    """
    return scenario_loader(name_or_path)(overrides)


def scenario_loader(name_or_path: str) -> Callable[[Sequence[str]], Scenario]:
    """`load_scenario` of one file with any overrides: it is read once for all points of a sweep.

    Raises:
        ValueError: as `load_scenario`, for the file; the result for overrides.
    """
    path, where = _find(name_or_path)
    raw = read_yaml(path, where=where, known=FIELDS)
    return _Overridden(path, with_names_of_today(raw, "scenarios", where=where), where)


def scenario_from(name: str, raw: Raw, overrides: Sequence[str], *, where: str) -> Scenario:
    """`load_scenario` of what a file called `name` would say."""
    return _Overridden(Path(f"{name}.yaml"), raw, where)(overrides)


class _Overridden:
    """The scenario of one file, its overrides applied."""

    def __init__(self, path: Path, raw: Raw, where: str) -> None:
        self._path, self._raw, self._where = path, raw, where
        self._named = cache(_named_file)
        """What the file names is read once, as the file is."""

    @cached_property
    def _written(self) -> Scenario:
        """As the file has it."""
        return _read(self._path, self._raw, {}, where=self._where, named=self._named)

    @cached_property
    def _origin(self) -> Scenario | None:
        """The shipped scenario whose published figures a file of the user repeats: they are of that
        scenario's inputs, whatever the file makes of them."""
        own = self._raw.get("published") or []
        if self._path.parent == SCENARIOS or not own:
            return None
        for name in known_scenarios():
            shipped, where = _find(name)
            raw = read_yaml(shipped, where=where)
            if any(figure in own for figure in raw.get("published") or []):
                return _read(shipped, raw, {}, where=where)
        return None

    def __call__(self, overrides: Sequence[str]) -> Scenario:
        raw, where = self._raw, self._where
        given = {}
        changes = {}
        for text in overrides:
            short, value = parse_override(text)
            full = full_path(short, raw, where)
            value = value_of_today(rooted(short, raw), value, "scenarios", where="--set")
            changes[full], given[full] = value, text.partition("=")[2].strip()
        try:
            scenario = _read(self._path, raw, changes, where=where, named=self._named)
        except ValueError:
            check_paths(given, raw, where)
            raise
        own_name = _directory_name(self._path, scenario.resolved)
        scenario = replace(scenario, directory_name=own_name)
        for axis in file_axes(scenario.file.vary, where=where):
            for varied in axis.paths:
                if full_path(varied, raw, where) in given:
                    raise ValueError(
                        f"{where}: --set {varied}: the file varies it; allowed: --set "
                        f"vary.{varied} with a list of values, or null for none"
                    )
        if given:
            try:
                written = self._written
                changed = list(differences(_content(scenario), _content(written)))
            except ValueError:  # A file that says too little by itself.
                written, changed = scenario, list(given)
            scenario = _named_by_its_changes(scenario, written, effective(given, changed))
            scenario = _without_figures_of(written, scenario, changed)
        if self._origin is not None:
            changed = list(differences(_content(scenario), _content(self._origin)))
            scenario = _without_figures_of(self._origin, scenario, changed)
        return scenario


def _read(
    path: Path, raw: Raw, changes: dict[str, Any], *, where: str, named: _ReadNamed | None = None
) -> Scenario:
    """A scenario from the text of its file, its overrides applied.

    Args:
        named: reads a file that it names, as `_named_file`.
    """
    changes = _with_stages_chosen_anew(raw, changes)
    whole = {root: value for root, value in changes.items() if "." not in root}
    raw = apply_overrides(raw, whole, where=where)
    raw, labels = _expand(raw, changes, where=where, named=named or _named_file)
    job_changes = {
        path: value
        for path, value in changes.items()
        if "." in path and path.split(".")[0] not in NAMED
    }
    # Where the job states no gap of its own, none is written: later changes of the calibration's
    # then still are changes of the job's.
    stated = any(path.split(".")[1:2] == ["gap"] for path in job_changes)
    raw = _with_gap(raw, where=where) if stated else raw
    raw = apply_overrides(_with_fields(raw, job_changes), job_changes, where=where)
    for field in raw:
        if field not in FIELDS:
            raise ValueError(f"{where}: {field}: unknown field; {meant_or_known(field, FIELDS)}")
    rest = {name: value for name, value in raw.items() if name not in JOBS and name not in NAMED}
    file = to_profile(ScenarioFile, rest, where=where)
    jobs = [job for job in JOBS if raw.get(job) is not None]
    if len(jobs) != 1:
        raise ValueError(
            f"{where}: {len(jobs)} jobs given ({', '.join(jobs) or 'none'}); "
            f"allowed: exactly one of {', '.join(JOBS)}"
        )
    for field, job in (("analysis", "fleet"), ("vary", "collective")):
        if raw.get(field) and jobs != [job]:
            raise ValueError(f"{where}: {field}: allowed with a {job} job only, not {jobs[0]}")
    if file.fidelity == "events" and jobs[0] not in ("training", "serving_step"):
        raise ValueError(
            f"{where}: fidelity: events: a {jobs[0]} job runs in one way only; allowed with it: "
            "timeline"
        )
    if file.events != EventsInputs() and file.fidelity != "events":
        raise ValueError(f"{where}: events: allowed with fidelity: events, not {file.fidelity}")
    if file.events.of == "step" and jobs[0] != "training":
        raise ValueError(f"{where}: events.of: step: allowed with a training job, not {jobs[0]}")
    parsed = to_profile(
        job_type(jobs[0]), _with_gap(raw, where=where)[jobs[0]], where=where, at=jobs[0]
    )
    flows = file.fidelity == "events" and file.events.contention
    shared = getattr(parsed, "expert_tensor_parallel", 1)
    if flows and shared > 1:
        raise ValueError(
            f"{where}: fidelity: events: training.expert_tensor_parallel: {shared}: a token's "
            "copies to the GPUs that share an expert are not simulated by flows; allowed: 1, or "
            "events.contention=off"
        )
    if raw.get("gpu") is not None and jobs[0] != "replay":
        raise ValueError(f"{where}: gpu: a {jobs[0]} job runs on cluster.node.gpu; set that")
    # What is given, an empty mapping too, is read.
    model, cluster, gpu, calibration = (
        None if raw.get(root) is None else _checked(root, object_key(raw[root]), labels[root])
        for root in NAMED
    )
    return Scenario(
        name=path.stem,
        where=where,
        directory_name=path.stem,
        file=file,
        job=parsed,
        named_model=model,
        named_cluster=cluster,
        named_gpu=gpu,
        named_calibration=calibration,
        resolved=raw,
    )


@lru_cache(maxsize=64)
def _checked(root: str, raw: Keyed[Raw], where: str) -> Any:
    """What a scenario names under `root`, checked once: fields that are read never change."""
    if root == "model":
        return parse_model_config(raw.value, source=where)
    return to_profile(_PROFILES[root][0], raw.value, where=where)


def variants(scenario: Scenario) -> list[Scenario]:
    """The scenario at every combination of the values that its file varies, itself where none."""
    axes = file_axes(scenario.file.vary, where=scenario.where)
    found = [] if axes else [scenario]
    for settings in points(axes) if axes else ():
        found.append(with_changes(scenario, settings))
    return found


def with_changes(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """The scenario with other values at some paths, name and published figures as they are.

    Args:
        changes: {path as of --set: value as a file has it}
    """
    full = {
        full_path(path, scenario.resolved, scenario.where): value for path, value in changes.items()
    }
    at = _read(Path(scenario.name), scenario.resolved, full, where=scenario.where)
    return replace(
        scenario,
        job=at.job,
        named_model=at.named_model,
        named_cluster=at.named_cluster,
        named_calibration=at.named_calibration,
    )


def _with_gap(raw: Raw, *, where: str) -> Raw:
    """The same scenario, its job with the calibration's gap where it states none of its own."""
    for name in JOBS:
        stated = raw.get(name)
        if not isinstance(stated, dict) or stated.get("gap") is not None:
            continue
        own = job_type(name).model_fields.get("gap")
        if own and own.is_required():
            calibration = raw.get("calibration")
            if not isinstance(calibration, dict):
                raise ValueError(f"{where}: calibration is missing; a {name} job needs it")
            raw = raw | {name: stated | {"gap": plain_copy(calibration.get("gap"))}}
    return raw


def _with_fields(raw: Raw, changes: dict[str, Any]) -> Raw:
    """The same scenario; a `skew` that is a word as the block of that setting where a change goes
    into it."""
    for job in JOBS:
        stated = raw.get(job)
        inside = any(path.startswith(f"{job}.skew.") for path in changes)
        if inside and isinstance(stated, dict) and isinstance(stated.get("skew"), str):
            raw = raw | {job: stated | {"skew": {"setting": stated["skew"]}}}
    return raw


def _with_stages_chosen_anew(raw: Raw, changes: dict[str, Any]) -> dict[str, Any]:
    """The same changes, and where one is of what the file's stages are written for, other stages.

    Sixteen stages of 61 layers are no wish of someone who asks for eight, or for another model.
    """
    training = raw.get("training")
    if not isinstance(training, dict) or training.get("stages", "default") == "default":
        return changes
    before = {f"training.{field}": value for field, value in training.items()} | raw
    of_stages = (
        path
        for path, value in changes.items()
        if path in STAGES_ARE_OF or path.split(".")[0] in STAGES_ARE_OF
        if before.get(path) != value
    )
    if "training.stages" in changes or not any(of_stages):
        return changes
    anew = {"training.stages": "default"}
    if "stages" in training.get("sources", {}):
        anew["training.sources.stages"] = "chosen by the run: those of the file are of other inputs"
    return {**changes, **anew}


def _directory_name(path: Path, raw: Raw) -> str:
    """A file's name; with a digest where a file of the user bears the name of a shipped one."""
    if path.parent == SCENARIOS or path.stem not in known_scenarios():
        return path.stem
    return f"{path.stem}-{digest(yaml.safe_dump(raw))}"


def _named_by_its_changes(
    scenario: Scenario, written: Scenario, changes: tuple[str, ...]
) -> Scenario:
    """The same scenario with what it changes of its file in name and description."""
    if not changes:
        return scenario
    said = {}
    if scenario.file.description == written.file.description:
        said["description"] = f"{scenario.file.description}; changed: {shown(changes)}"
    return replace(
        scenario,
        name=f"{scenario.name} with {shown(changes)}",
        directory_name=directory_name(scenario.directory_name, changes),
        file=scenario.file.model_copy(update=said),
        resolved=scenario.resolved | said,
        changes=changes,
    )


def _without_figures_of(own: Scenario, scenario: Scenario, changed: Sequence[str]) -> Scenario:
    """The same scenario without the published figures of a file that are of other inputs.

    Args:
        own: the scenario of that file.
        changed: paths at which the scenario differs from it.
    """
    job = scenario.job
    # The trace that synthetic requests stand for, and they, are one source of requests.
    requests = getattr(job, "requests", None)
    published = scenario.job_name == "fleet" and getattr(requests, "as_published", False)
    same = ("file", "format") if published else ()
    # How a step is run is no input of it.
    way = ("fidelity", "events.")
    apart = {f"fleet.requests.{name}" for name in same}
    # What a published run was stays what it was: a run of ideal ranks says what those would take.
    stated = getattr(job, "skew", None)
    ideal = stated is not None and stated.is_none
    skew = f"{scenario.job_name}.skew." if ideal else "none of these"
    inputs = [path for path in changed if path not in apart and not path.startswith((skew, *way))]
    left_out: list[str] = []
    because: list[str] = []

    def keeps(name: str, metric: str, *, of_file: bool) -> bool:
        found = [path for path in inputs if matters(path, metric)] if of_file else []
        if found:
            left_out.append(name)
            because.extend(found)
        return not found

    kept = [
        (text, figure)
        for text, figure in zip(
            scenario.resolved.get("published") or (), scenario.file.published, strict=True
        )
        if keeps(figure.name, figure.metric, of_file=figure in own.file.published)
    ]
    if not left_out:
        return scenario
    return replace(
        scenario,
        file=scenario.file.model_copy(update={"published": tuple(figure for _, figure in kept)}),
        resolved=scenario.resolved | {"published": [text for text, _ in kept]},
        figures_left_out=(*scenario.figures_left_out, *left_out),
        other_inputs=tuple(dict.fromkeys((*scenario.other_inputs, *because))),
    )


def _content(scenario: Scenario) -> dict[str, Any]:
    """All that a scenario says, in SI units, and what it names in the place of the names."""
    read = {name: getattr(scenario.file, name) for name in ScenarioFile.model_fields}
    read[scenario.job_name] = scenario.job
    named = (
        scenario.named_model,
        scenario.named_cluster,
        scenario.named_gpu,
        scenario.named_calibration,
    )
    return read | dict(zip(NAMED, named, strict=True))


def by_name(family: Mapping[str, _T], name: str, field: str) -> _T:
    """The member of a family (SCHEDULES, COST_MODELS, ...) that a scenario names.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    check_names([name], family, field)
    return family[name]


def check_names(names: Collection[str], known: Collection[str], field: str) -> None:
    """Raise ValueError for the first of `names` that is not among the known ones."""
    for name in names:
        if name not in known:
            raise ValueError(f"{field}: unknown name {name!r}; {meant_or_known(name, known)}")


def write_resolved(scenario: Scenario) -> str:
    """The scenario as YAML that reads back to the same one, with everything it names inside."""
    return yaml.safe_dump(scenario.resolved, sort_keys=False, allow_unicode=True, width=100)


def written(name_or_path: str) -> str:
    """The text of a scenario's file, as somebody wrote it.

    Raises:
        ValueError: no such file.
    """
    path, where = _find(name_or_path)
    return read_text(path, where=where)


def _find(name_or_path: str) -> tuple[Path, str]:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path), name_or_path
    if name_or_path not in known_scenarios():
        close = closest(name_or_path, known_scenarios())
        path_too = "a path to a .yaml file"
        meant = (
            did_you_mean([*close, path_too])
            if close
            else f"dsv3sim list scenarios shows all; or give {path_too}"
        )
        raise ValueError(f"unknown scenario {name_or_path!r}; {meant}")
    return SCENARIOS / f"{name_or_path}.yaml", f"scenarios/{name_or_path}.yaml"


_ReadNamed: TypeAlias = Callable[[str, str, bool], tuple[Raw, str]]


def _expand(
    raw: Raw, changes: dict[str, Any], *, where: str, named: _ReadNamed
) -> tuple[Raw, dict[str, str]]:
    """Put the files that the scenario names in the place of their names, overrides applied.

    The second result says where each of them came from, for messages.
    """
    expanded = dict(raw)
    labels: dict[str, str] = {}
    for root in NAMED:
        value = expanded.get(root)
        inside = {
            path.removeprefix(f"{root}."): change
            for path, change in changes.items()
            if path.startswith(f"{root}.")
        }
        if value is None and not inside:
            continue
        if isinstance(value, str):
            expanded[root], labels[root] = named(root, value, not inside)
        elif isinstance(value, dict):
            labels[root] = f"{where}: {root}"
        else:
            raise ValueError(
                f"{where}: {root}: {as_written(value)}; allowed: a name, a path or fields"
            )
        if inside and root == "model":
            _check_model_fields(inside, expanded[root], labels[root])
        if inside or isinstance(value, dict):
            expanded[root] = _overridden(root, expanded[root], inside, where=labels[root])
    return expanded, labels


def _named_file(root: str, name_or_path: str, unchanged: bool) -> tuple[Raw, str]:
    """The fields of a file that a scenario names, and what messages call it.

    Args:
        unchanged: with the files that it names itself in the place of their names; else they are as
            it has them, to be changed.
    """
    if root == "model":
        raw, label = read_config_file(name_or_path)
    else:
        raw, label = read_profile(_PROFILES[root][1], name_or_path)
    return (_overridden(root, raw, {}, where=label) if unchanged else raw), label


def _overridden(root: str, raw: Raw, changes: Mapping[str, Any], *, where: str) -> Raw:
    """What a scenario names, with its own files in the place of their names, overrides applied."""
    change = apply_overrides if root == "model" else _PROFILES[root][2]
    return change(raw, changes, where=where)


_PROFILES: Mapping[str, tuple[type[Profile], ProfileKind, Callable[..., Raw]]] = {
    "cluster": (ClusterProfile, "clusters", resolve_cluster),
    "gpu": (GpuProfile, "gpus", override_gpu),
    "calibration": (CalibrationProfile, "calibrations", override_calibration),
}
"""{what a scenario names: its profile, the folder of the shipped ones, and how it is overridden}"""


def _check_model_fields(changes: Mapping[str, Any], raw: Raw, where: str) -> None:
    """A config.json may hold fields that are ignored; a --set of such a field would do nothing."""
    known = {field.name for field in fields(ModelConfig)} - {"recipe"}
    known |= {"quantization_config", *raw}
    for path in changes:
        if path.split(".", maxsplit=1)[0] not in known:
            field = path.split(".", maxsplit=1)[0]
            raise ValueError(f"{where}: {path}: unknown field; {meant_or_known(field, known)}")
