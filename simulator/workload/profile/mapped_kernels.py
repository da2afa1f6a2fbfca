"""Say which operator each kernel of a profile is, by the rules of a mapping.

Rules see the kernel's name, the host operators around its launch, innermost first, and the user
annotation. Names for sizes:

    grid_x to grid_z    launch grid
    moved               bytes of a copy or fill
    input_0_1           second extent of the host operator's first input
    elements_0          elements of its first input, a tensor or a list of them
    width_0, bytes_0    bytes of one element, and of all
    inputs, largest     bytes of all inputs together, and of the largest one

and the named groups of the rule's pattern. What no rule covers stays unmapped, with a reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from hardware_profiles.schema import gpu_of_device, known_gpus
from hardware_profiles.units import Seconds
from reference_model.formats import BITS
from reference_model.trace import Operator
from simulator.workload.profile.expressions import evaluate
from simulator.workload.profile.kernel_mapping import (
    STANDARD,
    KernelMapping,
    KernelRule,
    OperatorEntry,
    known_mappings,
    load_mapping,
)
from simulator.workload.profile.recording import (
    ELEMENT_TYPES,
    WIDTHS,
    HostInput,
    HostSpan,
    Kernel,
    Trace,
)
from simulator.workload.profile.replay_graph import Role

LONGEST_NAME = 60
"""Characters of a kernel's short name."""


@dataclass(frozen=True, slots=True)
class MappedKernel:
    """What one kernel of a trace is."""

    label: str
    """Name in the mapping's tables, or of the host operator whose shapes say what it is; the
    kernel's own short name where no rule covers it."""
    operator: Operator | None
    """None where unmapped."""
    launch: tuple[str, int, int]
    """(label of the operator, occurrence of the annotation or of the host operator, kernel where it
    is a launch of its own, otherwise -1): kernels with the same one are one launch of the
    operator."""
    annotation: str
    """Innermost user annotation that the mapping names; empty for none."""
    role: Role
    polled: bool
    reason: str
    """Why it is unmapped; empty where it is mapped."""


@dataclass(frozen=True, slots=True)
class UnmappedKernel:
    """Kernels of one name of whose work nothing is known."""

    name: str
    reason: str
    kernels: int
    seconds: Seconds
    """Sum of their times."""

    def __str__(self) -> str:
        return f"{self.name}: {self.kernels} kernels, {self.seconds:.3g} s: {self.reason}"


def unmapped_kernels(
    trace: Trace,
    mapped: Sequence[MappedKernel],
    reason_of: Callable[[Kernel, MappedKernel], str | None],
) -> tuple[UnmappedKernel, ...]:
    """One entry for each name and reason, longest first.

    Args:
        reason_of: why a kernel counts; None where it does not.
    """
    found: dict[tuple[str, str], list[Seconds]] = defaultdict(list)
    for kernel, place in zip(trace.kernels, mapped, strict=True):
        reason = reason_of(kernel, place)
        if reason is not None:
            found[place.label, reason].append(kernel.seconds)
    entries = [
        UnmappedKernel(name, reason, len(times), sum(times))
        for (name, reason), times in found.items()
    ]
    return tuple(sorted(entries, key=lambda entry: (-entry.seconds, entry.name)))


def map_kernels(trace: Trace, mapping: KernelMapping) -> tuple[MappedKernel, ...]:
    """What each kernel of the trace is, in the trace's order."""
    by_rule = _by_rules(trace, mapping)
    if not mapping.named_operators:
        return by_rule
    named = _named(trace, mapping)
    return tuple(
        found if kernel.operator else other
        for kernel, found, other in zip(trace.kernels, named, by_rule, strict=True)
    )


def _by_rules(trace: Trace, mapping: KernelMapping) -> tuple[MappedKernel, ...]:
    places = _places(trace, mapping)
    names = {kernel.name for kernel in trace.kernels}
    roles = {name: _role(name, mapping) for name in names}
    polled = {name for name in names if _matches(mapping.polled, name)}
    labels = _labels(trace, mapping, places, roles)
    variables = _variables(trace, mapping, places)
    part_of = {part: main for main, parts in mapping.together.items() for part in parts}
    found: list[MappedKernel | None] = [None] * len(labels)
    last: dict[tuple[int, str], list[MappedKernel]] = defaultdict(list)
    """{(occurrence, pass): kernels of operators launched so far}"""
    of_host: dict[int, dict[str, int]] = {}
    for index in sorted(range(len(labels)), key=lambda i: (places[i].call_index, i)):
        kernel, place, label = trace.kernels[index], places[index], labels[index]
        unmapped = MappedKernel(
            label=label.shown,
            operator=None,
            launch=(label.shown, place.occurrence, index),
            annotation=place.annotation,
            role=roles[kernel.name],
            polled=kernel.name in polled,
            reason=label.reason,
        )
        found[index] = unmapped
        if label.reason:
            continue
        passed = (place.occurrence, label.name[:1])
        if label.name in mapping.helpers:
            kinds = mapping.helpers[label.name]
            helped = next(
                (m for m in reversed(last[passed]) if m.operator and m.operator.kind in kinds), None
            )
            if helped is None:
                reason = f"nothing of {', '.join(kinds)} launched before it"
                found[index] = replace(unmapped, reason=reason)
            else:
                found[index] = replace(unmapped, operator=helped.operator, launch=helped.launch)
            continue
        owner = part_of.get(label.name, label.name)
        entry = mapping.operators.get(owner)
        if entry is None:
            found[index] = replace(unmapped, reason=mapping.unmapped[label.name])
            continue
        host = None if label.host is None else trace.spans[label.host]
        if label.host is not None and label.host not in of_host:
            of_host[label.host] = _input_names(trace.spans[label.host].inputs)
        given = {
            **_kernel_names(kernel),
            **(of_host[label.host] if label.host is not None else {}),
            **label.groups,
            **variables.get(place.occurrence, {}),
        }
        try:
            operator = _operator(label.shown if label.by_host else owner, entry, given, host)
        except ValueError as error:
            found[index] = replace(unmapped, reason=str(error))
            continue
        launch = (owner, place.occurrence, index if label.alone else -1)
        if label.by_host and label.host is not None:
            launch = (label.shown, label.host, -1)
        mapped = replace(unmapped, operator=operator, launch=launch)
        found[index] = mapped
        last[passed].append(mapped)
    return tuple(kernel for kernel in found if kernel is not None)


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
            label=kernel.operator or short_name(kernel.name),
            operator=operators[index],
            launch=launches[index],
            annotation="",
            role=_role(kernel.name, mapping),
            polled=_matches(mapping.polled, kernel.name),
            reason=reasons[index],
        )
        for index, kernel in enumerate(trace.kernels)
    )


def short_name(name: str) -> str:
    """A kernel's name without namespaces, template arguments and parameters."""
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    short = re.split(r"[<(]", plain, maxsplit=1)[0].strip().rsplit("::", 1)[-1] or plain
    return short if len(short) <= LONGEST_NAME else f"{short[: LONGEST_NAME - 3]}..."


def best_mapping(trace: Trace) -> tuple[KernelMapping, tuple[MappedKernel, ...]]:
    """The shipped mapping that names most of the trace's kernel time, and what it says; the one for
    PyTorch programs in general where none names more."""
    names = sorted(known_mappings(), key=lambda name: name != STANDARD)
    known = [load_mapping(name) for name in names]

    def named_s(found: tuple[KernelMapping, tuple[MappedKernel, ...]]) -> float:
        places = zip(trace.kernels, found[1], strict=True)
        return sum(kernel.seconds for kernel, place in places if place.operator is not None)

    return max(((m, map_kernels(trace, m)) for m in known), key=named_s)


def gpu_of_recording(trace: Trace, mapping: KernelMapping, gpu: str | None) -> str:
    """The GPU that the trace was recorded on: a shipped name, or the path of a file.

    Args:
        gpu: what the user says it is; must agree where the trace names a GPU that is shipped.

    Raises:
        ValueError: the trace names another GPU than `gpu`, or none that is shipped or in the
            mapping, and `gpu` is not given.
    """
    found = ", ".join(trace.devices)
    known = {mapping.devices.get(device) or gpu_of_device(device) for device in trace.devices}
    recorded = known.pop() if len(known) == 1 else None
    if recorded is None and gpu is None:
        what = f"was recorded on {found!r}, which is not shipped" if found else "names no device"
        raise ValueError(
            f"{trace.path}: {what}; say which GPU it is from (--recorded-gpu): "
            f"{', '.join(known_gpus())}, or the path of a .yaml file like those"
        )
    if recorded is not None and gpu is not None and gpu != recorded:
        raise ValueError(f"{trace.path}: recorded on {found} ({recorded}), not on {gpu}")
    return recorded or str(gpu)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where on the host a kernel was launched."""

    call_index: int
    annotation: str
    occurrence: int
    hosts: tuple[int, ...]
    """Host operators around the launch, as indices of the trace's spans, innermost first."""


def _places(trace: Trace, mapping: KernelMapping) -> list[_Place]:
    named = {rule.annotation for rule in mapping.kernels} | {
        rule.annotation for rule in mapping.variables.values()
    }
    index_of = {
        call.correlation: index
        for index, call in reversed(list(enumerate(trace.calls)))
        if call.correlation is not None
    }
    annotations = [
        index
        for index, span in enumerate(trace.spans)
        if span.category == "user_annotation" and span.name in named
    ]
    occurrence: dict[int, int] = {}
    seen: dict[str, int] = defaultdict(int)
    for index in annotations:
        occurrence[index] = seen[trace.spans[index].name]
        seen[trace.spans[index].name] += 1
    around = dict(_enclosing(trace, annotations, thread=None))
    operators: dict[str, list[int]] = defaultdict(list)
    by_id: dict[int, int] = {}
    for index, span in enumerate(trace.spans):
        if span.category == "cpu_op":
            operators[span.thread].append(index)
            if span.external is not None:
                by_id[span.external] = index
    hosts: dict[int, tuple[int, ...]] = {}
    for thread, spans in operators.items():
        hosts.update(_enclosing(trace, spans, thread=thread))
    places = []
    for kernel in trace.kernels:
        call = index_of.get(kernel.correlation) if kernel.correlation is not None else None
        annotated = around.get(call, ()) if call is not None else ()
        enclosing = hosts.get(call, ()) if call is not None else ()
        # Older profiles repeat the correlation in the place of the operator's id.
        if not enclosing and kernel.external in by_id and kernel.external != kernel.correlation:
            enclosing = (by_id[kernel.external],)
        places.append(
            _Place(
                call_index=-1 if call is None else call,
                annotation=trace.spans[annotated[0]].name if annotated else "",
                occurrence=occurrence[annotated[0]] if annotated else 0,
                hosts=enclosing,
            )
        )
    return places


def _enclosing(
    trace: Trace, spans: Sequence[int], *, thread: str | None
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(index of a call, the spans around its start, the last begun first) of calls in any.

    Args:
        spans: indices of the trace's spans in order of start.
        thread: whose calls; None for all.
    """
    open_spans: list[int] = []
    following = iter(spans)
    upcoming = next(following, None)
    for index, call in enumerate(trace.calls):
        if thread is not None and call.thread != thread:
            continue
        while upcoming is not None and trace.spans[upcoming].start_s <= call.start_s:
            open_spans.append(upcoming)
            upcoming = next(following, None)
        open_spans = [span for span in open_spans if trace.spans[span].end_s >= call.start_s]
        if open_spans:
            yield index, tuple(reversed(open_spans))


@dataclass(frozen=True, slots=True)
class _Label:
    """What the first rule that covers a kernel says."""

    name: str
    """In the mapping's tables."""
    shown: str
    host: int | None = None
    """Host operator that its sizes are of, as an index of the trace's spans."""
    by_host: bool = False
    """Whether all that the host operator launches is one launch."""
    alone: bool = False
    """Whether the kernel is a launch of its own."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Named groups of the rule's pattern."""
    reason: str = ""
    """Why there is none."""


def _labels(
    trace: Trace,
    mapping: KernelMapping,
    places: Sequence[_Place],
    roles: Mapping[str, Role],
) -> list[_Label]:
    """The label of each kernel, by the first rule that covers it."""
    labels = [
        _Label(kernel.name, short_name(kernel.name), reason="no rule of the mapping covers it")
        for kernel in trace.kernels
    ]
    rules = [(rule, re.compile(rule.match)) for rule in mapping.kernels]
    groups: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    covering: dict[tuple[str, str, tuple[str, ...]], tuple[int, int] | None] = {}
    """{(name, annotation, names of hosts): (rule, which of the hosts)}: names repeat"""
    host_of: dict[int, int | None] = {}
    for index, (kernel, place) in enumerate(zip(trace.kernels, places, strict=True)):
        hosts = tuple(trace.spans[host].name for host in place.hosts)
        key = (kernel.name, place.annotation, hosts)
        if key not in covering:
            computes = roles[kernel.name] is Role.COMPUTE
            covering[key] = _covering_rule(rules, *key, computes=computes)
        found = covering[key]
        if found is not None:
            groups[found[0], place.annotation, place.occurrence].append(index)
            host_of[index] = place.hosts[found[1]] if place.hosts else None
    for (number, annotation, occurrence), members in groups.items():
        rule, pattern = rules[number]
        members.sort(key=lambda index: (places[index].call_index, index))
        names = rule.operators or (rule.operator or "",) * len(members)
        if len(names) != len(members):
            why = (
                f"{len(members)} kernels match {rule.match!r} in {annotation or 'the trace'} "
                f"({occurrence}), the mapping lists {len(names)}"
            )
            for index in members:
                labels[index] = replace(labels[index], reason=why)
            continue
        for index, name in zip(members, names, strict=True):
            host = host_of[index]
            by_host = rule.host is not None and rule.annotation is None
            matched = pattern.search(trace.kernels[index].name)
            labels[index] = _Label(
                name=name,
                shown=trace.spans[host].name if by_host and host is not None else name,
                host=host,
                by_host=by_host,
                alone=rule.annotation is None,
                groups=_group_values(matched.groupdict() if matched else {}),
            )
    return labels


def _covering_rule(
    rules: Sequence[tuple[KernelRule, re.Pattern[str]]],
    name: str,
    annotation: str,
    hosts: Sequence[str],
    *,
    computes: bool,
) -> tuple[int, int] | None:
    """(number of the first rule that covers a kernel, which of its hosts); None for no rule.

    A rule for whatever a host operator launches says nothing about kernels that communicate.
    """
    possible = [
        (number, rule)
        for number, (rule, pattern) in enumerate(rules)
        if rule.annotation in (None, annotation)
        and (computes or rule.match)
        and pattern.search(name)
    ]
    for depth, host in enumerate(hosts or ("",)):
        for number, rule in possible:
            if rule.host is None or (hosts and re.search(rule.host, host)):
                return number, depth
    return None


def _group_values(groups: Mapping[str, str | None]) -> dict[str, int]:
    """Named groups as numbers: of a type its bytes."""
    return {
        name: int(text) if text.isdecimal() else WIDTHS.get(text, 0)
        for name, text in groups.items()
        if text is not None
    }


def _variables(
    trace: Trace, mapping: KernelMapping, places: Sequence[_Place]
) -> dict[int, dict[str, int]]:
    """{occurrence: {variable: value}}"""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for name, rule in mapping.variables.items():
        for kernel, place in zip(trace.kernels, places, strict=True):
            if place.annotation == rule.annotation and re.search(rule.match, kernel.name):
                value = evaluate(rule.value, _kernel_names(kernel))
                found[place.occurrence].setdefault(name, value)
    return found


def _kernel_names(kernel: Kernel) -> dict[str, int]:
    grid = dict(zip(("grid_x", "grid_y", "grid_z"), kernel.grid, strict=True))
    return grid | {"moved": round(kernel.moved)}


def _input_names(inputs: Sequence[HostInput]) -> dict[str, int]:
    """What the inputs of a host operator give, see the module's docstring."""
    names: dict[str, int] = {}
    sizes = []
    for number, tensor in enumerate(inputs):
        if len(tensor.shapes) == 1:
            for axis, extent in enumerate(tensor.shapes[0]):
                names[f"input_{number}_{axis}"] = extent
        if not tensor.is_tensor:
            continue
        names[f"elements_{number}"] = tensor.elements
        sizes.append(tensor.width and tensor.elements * tensor.width)
        if tensor.width is not None:
            names |= {f"width_{number}": tensor.width, f"bytes_{number}": sizes[-1] or 0}
    known = [size for size in sizes if size is not None]
    if known and len(known) == len(sizes):
        names |= {"inputs": sum(known), "largest": max(known)}
    return names


def _operator(
    name: str, entry: OperatorEntry, names: Mapping[str, int], host: HostSpan | None
) -> Operator:
    """The operator of an entry; ValueError where the trace lacks what its sizes or types need."""
    sizes = {size: evaluate(text, names) for size, text in entry.sizes.items()}
    return Operator(
        name=name,
        kind=entry.kind,
        phase="forward",
        segment="",
        dtype=_element_type(entry.dtype, host),
        out_dtype=_element_type(entry.out_dtype, host),
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=entry.accumulate,
    )


def _element_type(dtype: str, host: HostSpan | None) -> str:
    """An element type; "input_0" stands for that of the host operator's first input."""
    if dtype in BITS:
        return dtype
    number = int(dtype.removeprefix("input_"))
    recorded = host.inputs[number].type_name if host and number < len(host.inputs) else ""
    if recorded not in ELEMENT_TYPES:
        raise ValueError(f"type {recorded!r} of {dtype} is none of {', '.join(ELEMENT_TYPES)}")
    return ELEMENT_TYPES[recorded]


def _role(name: str, mapping: KernelMapping) -> Role:
    if _matches(mapping.rank_wait, name):
        return Role.RANK_WAIT
    if _matches(mapping.communication, name):
        return Role.COMMUNICATION
    return Role.COMPUTE


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
