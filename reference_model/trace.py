"""Operator traces: recorded templates that give the operators of a micro-batch of any size.

An `OperatorTemplate` is an `Operator` (kinds.py) with every size an affine function of the
variables of a `Workload`, so that one recording serves every micro-batch. An `OperatorTrace` holds
the templates of each layer kind and phase in issue order, and lives on disk as JSON lines: a
header, then one line an operator. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from reference_model.formats import BITS, TILE
from reference_model.kinds import (
    ALL_TO_ALL_KINDS,
    COLLECTIVE_KINDS,
    KINDS,
    PHASES,
    Operator,
)
from reference_model.split import WHOLE, Split, part_of

# What a reader of traces needs, operators included, comes from here.
__all__ = [
    "ALL_TO_ALL_KINDS",
    "COLLECTIVE_KINDS",
    "FORMAT",
    "JOBS",
    "KINDS",
    "LAYER_KINDS",
    "MTP_ALONE",
    "PHASES",
    "RECOMPUTATIONS",
    "TILE",
    "TRACE_FOLDER",
    "WHOLE",
    "Affine",
    "Operator",
    "OperatorTemplate",
    "OperatorTrace",
    "Split",
    "Workload",
    "load_trace",
    "part_of",
    "save_trace",
    "split_of",
    "trace_header",
    "trace_name",
    "user_trace_folder",
]


class Workload(NamedTuple):
    """A value for each variable of a trace: what one rank works on in one micro-batch."""

    tokens: int
    context: int
    """Tokens of one sequence (training: tokens = sequences x context)."""
    sequences: int
    expert_rows: int
    """Rows of all local experts together, one for each (token, local expert) pair."""
    received_rows: int
    """Tokens that dispatch delivers to this rank, one for each (token, rank) pair: a token that
    chose two local experts travels once and is then expanded."""
    local_experts: int
    """Routed experts held by this rank."""


LAYER_KINDS = ("embedding", "dense", "moe", "mtp", "head")
MTP_ALONE = ("head.add_input_grads",)
"""Operators of other layers that are there for multi-token prediction alone: the head adds the
gradient that its module returns."""
RECOMPUTATIONS = ("published", "none", "attention", "layer")
"""What the backward of a layer computes again in the place of keeping it.

published   norms, the MLA up-projection (queries, keys and values of all heads) and SwiGLU (Report,
            3.2.3)
none        nothing of it but SwiGLU, whose backward kernels work it out in any case
attention   what the Report does, and the output of the attention core
layer       all of the layer's forward but the combine that ends it, from the residual stream
"""
FORMAT = "dsv3sim-operator-trace-2"
TRACE_FOLDER = Path(__file__).parent / "traces"
"""Traces of the shipped configs, named as `trace_name` has it."""
JOBS = ("train", "prefill", "decode")


def trace_name(
    model: str, job: str, recipe: str, split: Split = WHOLE, recompute: str = "published"
) -> str:
    """Name of the file of a trace: <model>.<job>.jsonl, with the recipe where it is not FP8, with
    the GPUs that share a layer (<model>.tp4etp2.train.jsonl), and with what is recomputed where
    that is not the published selection (<model>.train.recompute_layer.jsonl).

    The model is that of a shipped config, or a digest of shapes (`user_trace_folder`)."""
    experts = f"etp{split.expert_tensor}" if split.expert_tensor > 1 else ""
    parts = [] if split == WHOLE else [f"tp{split.tensor}{experts}"]
    others = [recipe] if recipe != "fp8" else []
    others += [f"recompute_{recompute}"] if recompute != "published" else []
    return ".".join([model, *parts, job, *others, "jsonl"])


def user_cache_folder() -> Path:
    """Where what can be made again is kept for a user: the cache folder of the XDG specification.

    Nothing is written into an installed package. A user without a home keeps nothing.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.devnull if cache.startswith("~") else cache) / "dsv3sim"


def user_trace_folder() -> Path:
    """Where a user's own recordings are kept, those of this version of the model's code."""
    return user_cache_folder() / "traces" / _code_digest()[:16]


@cache
def _code_digest() -> str:
    """Of all that a recording follows from, beside its model."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Affine:
    """A constant plus a sum of coefficient x variable, in whole numbers."""

    constant: int
    coefficients: tuple[tuple[str, int], ...] = ()
    """Sorted (variable, coefficient) pairs, none of them zero."""

    def at(self, variables: Mapping[str, int]) -> int:
        """The value at `variables`, a value for each variable of a `Workload`."""
        # A sum over a generator takes four times as long, and traces are evaluated often.
        value = self.constant
        for name, coefficient in self.coefficients:
            value += coefficient * variables[name]
        return value


@dataclass(frozen=True, slots=True)
class OperatorTemplate:
    """An `Operator` whose sizes are affine functions of the workload variables."""

    name: str
    kind: str
    phase: str
    segment: str
    dtype: str
    out_dtype: str
    sizes: tuple[tuple[str, Affine], ...]
    recompute: bool
    accumulate: bool

    def at(self, variables: Mapping[str, int]) -> Operator:
        """The operator at `variables`, a value for each variable of a `Workload`."""
        return Operator(
            name=self.name,
            kind=self.kind,
            phase=self.phase,
            segment=self.segment,
            dtype=self.dtype,
            out_dtype=self.out_dtype,
            sizes=tuple((name, size.at(variables)) for name, size in self.sizes),
            recompute=self.recompute,
            accumulate=self.accumulate,
        )


@dataclass(frozen=True, slots=True)
class OperatorTrace:
    """What one rank issues for one micro-batch, layer kind by layer kind and phase by phase."""

    model: str
    """Name of the config, such as "deepseek_v3"."""
    shape_digest: str
    """SHA-256 of the shapes that were recorded (`ModelConfig.shape_digest`)."""
    job: str
    """What was recorded: "train", "prefill" or "decode"."""
    recipe: str
    """Precision recipe: "fp8", "bfloat16" or "float32"."""
    split: Split = WHOLE
    """GPUs that share a layer; tokens and received rows are those of one of them."""
    recompute: str = "published"
    """What backward computes again, one of RECOMPUTATIONS."""
    templates: Mapping[tuple[str, str], tuple[OperatorTemplate, ...]] = field(default_factory=dict)
    """(layer kind, phase) -> operators in issue order."""
    saved: Mapping[tuple[str, str], Affine] = field(default_factory=dict)
    """(layer kind, phase) -> bytes that one layer keeps once the phase is over: after "forward"
    what it keeps till its backward, after "recompute" what the input gradient needs where that is
    more, after "input_grad" what the weight gradient still needs."""

    def operators(self, layer_kind: str, phase: str, workload: Workload) -> list[Operator]:
        """Operators of one layer in issue order. An empty list where the phase issues none.

        Raises ValueError for a layer kind or phase that the trace does not hold."""
        variables = workload._asdict()
        return [template.at(variables) for template in self._section(layer_kind, phase)]

    def saved_bytes(self, layer_kind: str, phase: str, workload: Workload) -> int:
        """Activation bytes that one layer of a micro-batch keeps after `phase` (see `saved`)."""
        self._section(layer_kind, phase)
        if (layer_kind, phase) not in self.saved:
            return 0
        return self.saved[layer_kind, phase].at(workload._asdict())

    def beside(self, others: Iterable[OperatorTrace]) -> OperatorTrace:
        """This trace with the layers of others that recompute something else, as kinds of their
        own: "moe/layer" is a mixture-of-experts layer that recomputes all of itself."""
        every = list(others)
        if not every:
            return self
        templates, saved = dict(self.templates), dict(self.saved)
        for other in every:
            for (kind, phase), section in other.templates.items():
                templates[f"{kind}/{other.recompute}", phase] = section
            for (kind, phase), size in other.saved.items():
                saved[f"{kind}/{other.recompute}", phase] = size
        return replace(self, templates=templates, saved=saved)

    def without_mtp(self) -> OperatorTrace:
        """What a model of the same shapes without multi-token prediction issues."""
        templates = {
            key: tuple(template for template in section if template.name not in MTP_ALONE)
            for key, section in self.templates.items()
            if key[0] != "mtp"
        }
        saved = {key: size for key, size in self.saved.items() if key[0] != "mtp"}
        return replace(self, templates=templates, saved=saved)

    def _section(self, layer_kind: str, phase: str) -> tuple[OperatorTemplate, ...]:
        kinds = sorted({kind for kind, _ in self.templates})
        if layer_kind not in kinds:
            raise ValueError(
                f"trace of {self.model}: layer kind {layer_kind!r} is not one of {kinds}"
            )
        if phase not in PHASES:
            raise ValueError(f"trace of {self.model}: phase {phase!r} is not one of {list(PHASES)}")
        return self.templates.get((layer_kind, phase), ())


def save_trace(trace: OperatorTrace, path: Path) -> None:
    """Write `trace` as JSON lines: a header, the bytes kept by each layer, one line an operator.

    The file appears whole or not at all, and says what its lines are, so that none is damaged
    unseen."""
    lines = (*_saved_lines(trace), *_operator_lines(trace))
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    header = {
        "format": FORMAT,
        "model": trace.model,
        "shape_digest": trace.shape_digest,
        "job": trace.job,
        "recipe": trace.recipe,
        **({"recompute": trace.recompute} if trace.recompute != "published" else {}),
        "variables": list(Workload._fields),
        **({} if trace.split == WHOLE else trace.split._asdict()),
        "check": _check_of(text),
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    head = json.dumps(header, separators=(",", ":"))
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(f"{head}\n{text}")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _check_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_trace(path: Path) -> OperatorTrace:
    """Read a trace that `save_trace` wrote.

    Raises ValueError naming file, line and field where the file is not such a trace."""
    return _trace(path, path.read_text(encoding="utf-8"))


@lru_cache(maxsize=32)
def _trace(path: Path, text: str) -> OperatorTrace:
    """The trace of a text, the same object for the same text."""
    lines = text.splitlines()
    header = _header(path, lines[0] if lines else "{}")
    _, _, rest = text.partition("\n")
    sections: dict[tuple[str, str], list[OperatorTemplate]] = {}
    saved: dict[tuple[str, str], Affine] = {}
    for number, entry in enumerate(lines[1:], start=2):
        line = _parse(path, number, entry)
        try:
            key = (line["layer"], line["phase"])
            if "saved_bytes" in line:
                saved[key] = _affine_from_json(line["saved_bytes"])
            else:
                sections.setdefault(key, []).append(_template_from_json(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {number}: {error}") from error
    if header.get("check", _check_of(rest)) != _check_of(rest):
        raise ValueError(f"{path}: its lines are not those that were written; record it again")
    return OperatorTrace(
        model=header["model"],
        shape_digest=header["shape_digest"],
        job=header["job"],
        recipe=header["recipe"],
        split=split_of(header),
        recompute=header.get("recompute", "published"),
        templates={key: tuple(templates) for key, templates in sections.items()},
        saved=saved,
    )


def split_of(header: Mapping[str, Any]) -> Split:
    """The GPUs that share a layer, of a trace with this header; one where it names none."""
    return Split(**{name: header.get(name, 1) for name in Split._fields})


def trace_header(path: Path) -> dict[str, Any]:
    """What a trace says it is of: model, shape_digest, job, recipe, the GPUs of `Split` and what
    is recomputed.

    Raises ValueError where the file is no trace."""
    with path.open(encoding="utf-8") as file:
        return _header(path, file.readline() or "{}")


def _header(path: Path, line: str) -> dict[str, Any]:
    header = _parse(path, 1, line)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: format {header.get('format')!r} is not {FORMAT!r}")
    for name in ("model", "shape_digest", "job", "recipe"):
        if not isinstance(header.get(name), str):
            raise ValueError(f"{path}: line 1: {name} is missing or no text")
    return header


def _parse(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
    if not isinstance(line, dict):
        raise ValueError(f"{path}: line {number} is {type(line).__name__}, not an object")
    return line


def _saved_lines(trace: OperatorTrace) -> Iterator[dict[str, Any]]:
    for (layer, phase), size in trace.saved.items():
        yield {"layer": layer, "phase": phase, "saved_bytes": _affine_to_json(size)}


def _operator_lines(trace: OperatorTrace) -> Iterator[dict[str, Any]]:
    for (layer, phase), templates in trace.templates.items():
        for template in templates:
            line: dict[str, Any] = {
                "layer": layer,
                "phase": phase,
                "segment": template.segment,
                "name": template.name,
                "kind": template.kind,
                "dtype": template.dtype,
                "out_dtype": template.out_dtype,
                "sizes": {name: _affine_to_json(size) for name, size in template.sizes},
            }
            if template.recompute:
                line["recompute"] = True
            if template.accumulate:
                line["accumulate"] = True
            yield line


def _template_from_json(line: Mapping[str, Any]) -> OperatorTemplate:
    kind = line["kind"]
    if kind not in KINDS:
        close = get_close_matches(str(kind), KINDS) or [f"the {len(KINDS)} of kinds.py"]
        raise ValueError(f"kind {kind!r} is not one of {', '.join(close)}")
    if line["phase"] not in PHASES:
        raise ValueError(f"phase {line['phase']!r} is not one of {list(PHASES)}")
    if set(line["sizes"]) != set(KINDS[kind].sizes):
        raise ValueError(
            f"sizes {sorted(line['sizes'])} of kind {kind!r} are not {sorted(KINDS[kind].sizes)}"
        )
    for dtype in (line["dtype"], line["out_dtype"]):
        if dtype not in BITS:
            raise ValueError(f"dtype {dtype!r} is not one of {sorted(BITS)}")
    return OperatorTemplate(
        name=line["name"],
        kind=kind,
        phase=line["phase"],
        segment=line["segment"],
        dtype=line["dtype"],
        out_dtype=line["out_dtype"],
        sizes=tuple(sorted((name, _affine_from_json(s)) for name, s in line["sizes"].items())),
        recompute=line.get("recompute", False),
        accumulate=line.get("accumulate", False),
    )


def _affine_to_json(size: Affine) -> int | dict[str, int]:
    """A plain number where the size is constant, else {variable: coefficient, "constant": ...}."""
    if not size.coefficients:
        return size.constant
    terms = dict(size.coefficients)
    return terms | {"constant": size.constant} if size.constant else terms


_LARGEST = 2**53
"""Whole number in a size of a trace; larger ones are none in floating point either."""


def _affine_from_json(value: Any) -> Affine:
    numbers = list(value.values()) if isinstance(value, dict) else [value]
    if not all(isinstance(number, int) and abs(number) <= _LARGEST for number in numbers):
        raise ValueError(
            f"a size is neither a whole number up to {_LARGEST} nor such numbers by variable"
        )
    if isinstance(value, int):
        return Affine(constant=value)
    unknown = sorted(set(value) - {*Workload._fields, "constant"})
    if unknown:
        raise ValueError(f"variables {unknown} are not among {list(Workload._fields)}")
    coefficients = sorted((name, c) for name, c in value.items() if name != "constant")
    return Affine(constant=value.get("constant", 0), coefficients=tuple(coefficients))
