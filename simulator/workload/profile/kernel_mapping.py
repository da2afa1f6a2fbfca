"""Say which operator each kernel of a profile belongs to, as a mapping file says.

A mapping is data (hardware_profiles/mappings/*.yaml with ``format: kineto``, or a user's own file):
patterns on the kernel's name, the user annotation and the host operator around its launch, and the
order of launches inside that annotation. Sizes are whole numbers or arithmetic on the launch grid
(``grid_x`` to ``grid_z``), on recorded input shapes (``input_0_1``: second extent of the host
operator's first input) and on variables that the mapping reads off other kernels. What no rule
covers stays unmapped, with a reason.
"""

from __future__ import annotations

import ast
import operator as arithmetic
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from hardware_profiles.fields import ROOT, Profile, apply_overrides, read_yaml, to_profile
from hardware_profiles.renames import with_names_of_today
from hardware_profiles.schema import TimeEstimate
from reference_model.trace import KINDS, Operator
from simulator.workload.profile.kineto import HostCall, HostSpan, Kernel, Trace
from simulator.workload.profile.replay_graph import Role

Size = int | str


class OperatorEntry(Profile):
    """An operator that kernels may be."""

    kind: str
    dtype: str
    out_dtype: str
    sizes: dict[str, Size]
    accumulate: bool = False
    """Whether the kernel adds into its result."""

    @model_validator(mode="after")
    def _known_kind(self) -> OperatorEntry:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kernel family; known: {', '.join(KINDS)}")
        wrong = set(self.sizes) ^ set(KINDS[self.kind].sizes)
        if wrong:
            raise ValueError(f"sizes of {self.kind} are {', '.join(KINDS[self.kind].sizes)}")
        for size in self.sizes.values():
            _check_expression(size)
        return self


class KernelRule(Profile):
    """Kernels by name and place, and what they are."""

    match: str
    """Regular expression, found anywhere in the kernel's name."""
    annotation: str | None = None
    """User annotation that the launch lies in. What such rules give the same name in one occurrence
    of an annotation is one launch of that operator; without an annotation each kernel is one."""
    host: str | None = None
    """Regular expression on the innermost host operator around the launch."""
    operator: str | None = None
    """What every match is."""
    operators: tuple[str, ...] = ()
    """What the first, second, ... match of one annotation is, in order of launch."""

    @field_validator("match", "host")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _checked_pattern(pattern)

    @model_validator(mode="after")
    def _one_of_both(self) -> KernelRule:
        if (self.operator is None) == (not self.operators):
            raise ValueError("needs either operator or operators")
        return self


class VariableRule(Profile):
    """A number read off the launch of one kernel in each occurrence of an annotation."""

    match: str
    annotation: str
    value: Size

    @field_validator("match")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return _checked_pattern(pattern) or ""


class KernelMapping(Profile):
    """One mapping file."""

    name: str
    format: Literal["kineto"]
    extends: str | None = None
    """A further file of the same folder whose tables this one adds to."""
    kernel_set: str
    """Version of the kernels, the condition ``set`` of measured rows."""
    devices: dict[str, str]
    """{device name in a profile: GPU profile}"""
    launch_latency: TimeEstimate
    gap: TimeEstimate
    communication: tuple[str, ...] = ()
    """Patterns of kernels that move data between GPUs."""
    rank_wait: tuple[str, ...] = ()
    """Patterns of kernels that hold a barrier across ranks."""
    polled: tuple[str, ...] = ()
    """Patterns of kernels whose result the launching thread polls for in memory."""
    cluster: str | None = None
    """Cluster profile of the recorded machine; None where the network is not known."""
    expert_parallel_ranks: int | None = None
    """GPUs that share a layer's experts; None where it does not apply."""
    variables: dict[str, VariableRule] = Field(default_factory=dict)
    operators: dict[str, OperatorEntry] = Field(default_factory=dict)
    together: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """{operator: further kernels that belong to it}"""
    helpers: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """{kernel: kinds}: its time belongs to the operator of such a kind before it."""
    unmapped: dict[str, str] = Field(default_factory=dict)
    """{kernel, or kind of a named operator: why no operator stands for it}"""
    kernels: tuple[KernelRule, ...] = ()
    named_operators: bool = False
    """Whether the profile itself names each kernel's operator; the tables then say nothing."""

    @field_validator("communication", "rank_wait", "polled")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _checked_pattern(pattern)
        return patterns

    @model_validator(mode="after")
    def _names_are_known(self) -> KernelMapping:
        parts = {part for group in self.together.values() for part in group}
        known = {*self.operators, *parts, *self.helpers, *self.unmapped}
        for rule in self.kernels:
            for name in (*rule.operators, *([rule.operator] if rule.operator else [])):
                if name not in known:
                    raise ValueError(f"kernels: {name!r} is in none of the file's tables")
        return self


def known_mappings() -> tuple[str, ...]:
    """Names of the shipped mappings for profiler traces, sorted."""
    found = []
    for path in sorted((ROOT / "mappings").glob("*.yaml")):
        if read_yaml(path, where=path.name).get("format") == "kineto":
            found.append(path.stem)
    return tuple(found)


def mapping_file(name_or_path: str, known: Sequence[str]) -> tuple[Path, str]:
    """The file of a mapping by shipped name or by path, and what to call it in messages.

    Raises:
        ValueError: no shipped mapping has the name; the message lists the known ones.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path), name_or_path
    path = ROOT / "mappings" / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ValueError(
            f"unknown mapping {name_or_path!r}; known: {', '.join(known)}; or give a path to a "
            ".yaml file"
        )
    return path, f"mappings/{name_or_path}.yaml"


def load_mapping(name_or_path: str) -> KernelMapping:
    """Load a mapping by shipped name or by path to a YAML file; ValueError for anything wrong."""
    path, where = mapping_file(name_or_path, known_mappings())
    raw = with_names_of_today(read_yaml(path, where=where), "mappings", where=where)
    base = raw.get("extends")
    if isinstance(base, str):
        further = path.parent / f"{base}.yaml"
        tables = read_yaml(
            further if further.is_file() else ROOT / "mappings" / f"{base}.yaml",
            where=f"{where}: extends: {base}",
        )
        for table in ("operators", "together", "helpers", "unmapped"):
            merged = {**tables.get(table, {}), **raw.get(table, {})}
            raw = apply_overrides(raw, {table: merged}, where=where)
    return to_profile(KernelMapping, raw, where=where)


@dataclass(frozen=True, slots=True)
class MappedKernel:
    """What one kernel of a trace is."""

    label: str
    """Name in the mapping's tables; the kernel's own name where no rule covers it."""
    operator: Operator | None
    """None where unmapped."""
    launch: tuple[str, int, int]
    """(label of the operator, occurrence of the annotation, kernel where it is a launch of its own,
    otherwise -1): kernels with the same one are one launch of the operator."""
    annotation: str
    """Innermost user annotation that the mapping names; empty for none."""
    role: Role
    polled: bool
    reason: str
    """Why it is unmapped; empty where it is mapped."""


def map_kernels(trace: Trace, mapping: KernelMapping) -> tuple[MappedKernel, ...]:
    """What each kernel of the trace is, in the trace's order."""
    if mapping.named_operators:
        return _named(trace, mapping)
    places = _places(trace, mapping)
    labels, reasons, alone = _labels(trace, mapping, places)
    variables = _variables(trace, mapping, places)
    part_of = {part: main for main, parts in mapping.together.items() for part in parts}
    operators: list[Operator | None] = [None] * len(labels)
    launches = [(label, places[i].occurrence, i) for i, label in enumerate(labels)]
    last: dict[tuple[int, str], list[tuple[Operator, tuple[str, int, int]]]] = defaultdict(list)
    """{(occurrence, pass): operators launched so far, with their launch}"""
    for index in sorted(range(len(labels)), key=lambda i: (places[i].call_index, i)):
        place, label = places[index], labels[index]
        if reasons[index]:
            continue
        passed = (place.occurrence, label[:1])
        if label in mapping.helpers:
            kinds = mapping.helpers[label]
            host = next((o for o in reversed(last[passed]) if o[0].kind in kinds), None)
            if host is None:
                reasons[index] = f"nothing of {', '.join(kinds)} launched before it"
            else:
                operators[index], launches[index] = host
            continue
        owner = part_of.get(label, label)
        entry = mapping.operators.get(owner)
        if entry is None:
            reasons[index] = mapping.unmapped[label]
            continue
        names = {
            **_launch_names(trace.kernels[index], place),
            **variables.get(place.occurrence, {}),
        }
        try:
            sizes = {name: evaluate(size, names) for name, size in entry.sizes.items()}
        except ValueError as error:
            reasons[index] = str(error)
            continue
        operator = _operator(owner, entry, sizes)
        operators[index] = operator
        launches[index] = (owner, place.occurrence, index if alone[index] else -1)
        last[passed].append((operator, launches[index]))
    return tuple(
        MappedKernel(
            label=labels[index],
            operator=operators[index],
            launch=launches[index],
            annotation=place.annotation,
            role=_role(kernel, mapping),
            polled=_matches(mapping.polled, kernel.name),
            reason=reasons[index],
        )
        for index, (kernel, place) in enumerate(zip(trace.kernels, places, strict=True))
    )


def _named(trace: Trace, mapping: KernelMapping) -> tuple[MappedKernel, ...]:
    """Kernels by the operators that the profile names.

    Both lists are in the order of issue: a run of kernels of one name belongs to the next operators
    of that name. Where several of them follow each other, they share the run alike if they are
    equal, and stay unmapped if not.
    """
    described = [span.operator for span in trace.spans if span.operator is not None]
    operators: list[Operator | None] = [None] * len(trace.kernels)
    launches = [("", 0, index) for index in range(len(trace.kernels))]
    reasons = ["the profile names no operator for it"] * len(trace.kernels)
    following = 0
    for name, run in groupby(range(len(trace.kernels)), lambda at: trace.kernels[at].operator):
        members = list(run)
        first = following
        while first < len(described) and described[first].name != name:
            first += 1
        if not name or first == len(described):
            if name:
                for index in members:
                    reasons[index] = "the profile describes no further operator of this name"
            continue
        following = first
        while following < len(described) and described[following].name == name:
            following += 1
        same = described[first:following]
        each, rest = divmod(len(members), len(same))
        equal = len({(operator.kind, operator.sizes, operator.dtype) for operator in same}) == 1
        for place, index in enumerate(members):
            if rest or not equal:
                reasons[index] = f"{len(same)} operators of this name follow each other"
                continue
            number = first + place // each
            reasons[index] = mapping.unmapped.get(described[number].kind, "")
            if not reasons[index]:
                operators[index], launches[index] = described[number], (name, number, -1)
    return tuple(
        MappedKernel(
            label=kernel.operator or kernel.name,
            operator=operators[index],
            launch=launches[index],
            annotation="",
            role=_role(kernel, mapping),
            polled=_matches(mapping.polled, kernel.name),
            reason=reasons[index],
        )
        for index, kernel in enumerate(trace.kernels)
    )


def best_mapping(trace: Trace) -> tuple[KernelMapping, tuple[MappedKernel, ...]]:
    """The shipped mapping that names most of the trace's kernel time, and what it says.

    Only those that know the trace's devices count, where there are any.
    """
    known = [load_mapping(name) for name in known_mappings()]
    of_device = [m for m in known if all(device in m.devices for device in trace.devices)]

    def named_s(found: tuple[KernelMapping, tuple[MappedKernel, ...]]) -> float:
        places = zip(trace.kernels, found[1], strict=True)
        return sum(kernel.seconds for kernel, place in places if place.operator is not None)

    return max(((m, map_kernels(trace, m)) for m in of_device or known), key=named_s)


def gpu_of_recording(trace: Trace, mapping: KernelMapping, gpu: str | None) -> str:
    """Name of the GPU profile that the trace was recorded on.

    Raises ValueError where the trace names another device than `gpu`, or one that the mapping does
    not know, or none and `gpu` is not given.
    """
    if not trace.devices:
        if gpu is None:
            raise ValueError(f"{trace.path}: does not say its device; name the GPU it is from")
        return gpu
    known = {mapping.devices.get(device) for device in trace.devices}
    found = ", ".join(trace.devices)
    if len(known) != 1 or None in known:
        raise ValueError(
            f"{trace.path}: device {found!r} is not in mapping {mapping.name}; "
            f"known: {', '.join(mapping.devices)}"
        )
    recorded = str(known.pop())
    if gpu is not None and gpu != recorded:
        raise ValueError(f"{trace.path}: recorded on {found} ({recorded}), not on {gpu}")
    return recorded


@dataclass(frozen=True, slots=True)
class _Place:
    """Where on the host a kernel was launched."""

    call_index: int
    annotation: str
    occurrence: int
    host: HostSpan | None


def _places(trace: Trace, mapping: KernelMapping) -> list[_Place]:
    named = {rule.annotation for rule in mapping.kernels} | {
        rule.annotation for rule in mapping.variables.values()
    }
    index_of = {
        call.correlation: index
        for index, call in reversed(list(enumerate(trace.calls)))
        if call.correlation is not None
    }
    annotations = [s for s in trace.spans if s.category == "user_annotation" and s.name in named]
    occurrence: dict[int, int] = {}
    seen: dict[str, int] = defaultdict(int)
    for span in annotations:
        occurrence[id(span)] = seen[span.name]
        seen[span.name] += 1
    around = dict(_innermost(trace.calls, annotations))
    hosts: dict[int, HostSpan] = {}
    if any(rule.host for rule in mapping.kernels) or _uses_inputs(mapping):
        by_thread: dict[str, list[HostSpan]] = defaultdict(list)
        for span in trace.spans:
            if span.category == "cpu_op":
                by_thread[span.thread].append(span)
        for thread, spans in by_thread.items():
            on_thread = [c if c.thread == thread else None for c in trace.calls]
            hosts.update(_innermost(on_thread, spans))
    places = []
    for kernel in trace.kernels:
        call = index_of.get(kernel.correlation) if kernel.correlation is not None else None
        annotated = around.get(call) if call is not None else None
        places.append(
            _Place(
                call_index=-1 if call is None else call,
                annotation="" if annotated is None else annotated.name,
                occurrence=0 if annotated is None else occurrence[id(annotated)],
                host=None if call is None else hosts.get(call),
            )
        )
    return places


def _innermost(
    calls: Sequence[HostCall | None], spans: Sequence[HostSpan]
) -> Iterator[tuple[int, HostSpan]]:
    """(index of the call, the span around its start that began last); both in order of start."""
    open_spans: list[HostSpan] = []
    following = iter(spans)
    upcoming = next(following, None)
    for index, call in enumerate(calls):
        if call is None:
            continue
        while upcoming is not None and upcoming.start_s <= call.start_s:
            open_spans.append(upcoming)
            upcoming = next(following, None)
        open_spans = [span for span in open_spans if span.end_s >= call.start_s]
        if open_spans:
            yield index, open_spans[-1]


def _labels(
    trace: Trace, mapping: KernelMapping, places: Sequence[_Place]
) -> tuple[list[str], list[str], list[bool]]:
    """(label, reason for none, whether it is a launch of its own) of each kernel, by the first rule
    that covers it."""
    labels = [kernel.name for kernel in trace.kernels]
    reasons = ["no rule of the mapping matches its name"] * len(labels)
    alone = [False] * len(trace.kernels)
    rules = [(rule, re.compile(rule.match)) for rule in mapping.kernels]
    groups: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    matching: dict[tuple[str, str], list[int]] = {}
    """{(name, annotation): rules}: names repeat"""
    for index, (kernel, place) in enumerate(zip(trace.kernels, places, strict=True)):
        key = (kernel.name, place.annotation)
        if key not in matching:
            matching[key] = [
                number
                for number, (rule, pattern) in enumerate(rules)
                if rule.annotation in (None, place.annotation) and pattern.search(kernel.name)
            ]
        for number in matching[key]:
            rule = rules[number][0]
            if rule.host and not (place.host and re.search(rule.host, place.host.name)):
                continue
            groups[number, place.annotation, place.occurrence].append(index)
            break
    for (number, annotation, occurrence), members in groups.items():
        rule = rules[number][0]
        members.sort(key=lambda index: (places[index].call_index, index))
        names = rule.operators or (rule.operator or "",) * len(members)
        if len(names) != len(members):
            why = (
                f"{len(members)} kernels match {rule.match!r} in {annotation or 'the trace'} "
                f"({occurrence}), the mapping lists {len(names)}"
            )
            for index in members:
                reasons[index] = why
            continue
        for index, name in zip(members, names, strict=True):
            labels[index], reasons[index], alone[index] = name, "", rule.annotation is None
    return labels, reasons, alone


def _variables(
    trace: Trace, mapping: KernelMapping, places: Sequence[_Place]
) -> dict[int, dict[str, int]]:
    """{occurrence: {variable: value}}"""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for name, rule in mapping.variables.items():
        for kernel, place in zip(trace.kernels, places, strict=True):
            if place.annotation == rule.annotation and re.search(rule.match, kernel.name):
                value = evaluate(rule.value, _launch_names(kernel, place))
                found[place.occurrence].setdefault(name, value)
    return found


def _launch_names(kernel: Kernel, place: _Place) -> dict[str, int]:
    names = dict(zip(("grid_x", "grid_y", "grid_z"), kernel.grid, strict=True))
    if place.host is not None:
        for number, shape in enumerate(place.host.input_sizes):
            for axis, extent in enumerate(shape):
                names[f"input_{number}_{axis}"] = extent
    return names


def _operator(name: str, entry: OperatorEntry, sizes: Mapping[str, int]) -> Operator:
    return Operator(
        name=name,
        kind=entry.kind,
        phase="forward",
        segment="",
        dtype=entry.dtype,
        out_dtype=entry.out_dtype,
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=entry.accumulate,
    )


def _role(kernel: Kernel, mapping: KernelMapping) -> Role:
    if _matches(mapping.rank_wait, kernel.name):
        return Role.RANK_WAIT
    if _matches(mapping.communication, kernel.name):
        return Role.COMMUNICATION
    return Role.COMPUTE


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _checked_pattern(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


# ------------------------------------------------------------------------------ size expressions

_OPERATIONS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: arithmetic.add,
    ast.Sub: arithmetic.sub,
    ast.Mult: arithmetic.mul,
    ast.FloorDiv: arithmetic.floordiv,
}


def evaluate(size: Size, names: Mapping[str, int]) -> int:
    """Value of a size: a whole number, or +, -, *, // on numbers and names.

    Raises ValueError for a name that is not there or a result that is no size.
    """
    if isinstance(size, int):
        return size
    value = _value(_check_expression(size), names, size)
    if value < 0:
        raise ValueError(f"size {size!r} is {value}, less than 0")
    return value


def _check_expression(size: Size) -> ast.expr:
    try:
        tree = ast.parse(str(size), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"size {size!r} is no arithmetic on numbers and names") from None
    for node in ast.walk(tree):
        known = isinstance(node, (ast.BinOp, ast.Name, ast.Load, *_OPERATIONS))
        if not (known or (isinstance(node, ast.Constant) and type(node.value) is int)):
            raise ValueError(
                f"size {size!r}: only whole numbers, names, +, -, * and // are allowed"
            )
    return tree


def _value(node: ast.expr, names: Mapping[str, int], size: Size) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise ValueError(f"size {size!r}: the trace does not give {node.id!r}")
        return names[node.id]
    assert isinstance(node, ast.BinOp)
    left, right = _value(node.left, names, size), _value(node.right, names, size)
    if isinstance(node.op, ast.FloorDiv) and right == 0:
        raise ValueError(f"size {size!r} divides by 0")
    return _OPERATIONS[type(node.op)](left, right)


def _uses_inputs(mapping: KernelMapping) -> bool:
    return any(
        "input_" in str(s) for entry in mapping.operators.values() for s in entry.sizes.values()
    )
