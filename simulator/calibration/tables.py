"""Read other tools' benchmark tables as measured kernel times, as a mapping file says.

What the columns of a table mean stands in table_mappings.py, how files are read in table_files.py.
What makes the whole table useless is one ValueError. A line that cannot be used (of another GPU, no
number, a time that is not positive, beyond what the datasheet's peaks allow or far off all others
of its kernel, as mixed units give) is set aside and counted, with its line number; nothing is
dropped in silence.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import GpuProfile, gpu_of_device, load_gpu
from hardware_profiles.tables import (
    COLUMNS,
    ELEMENT_TYPES,
    TRANSFER_KINDS,
    TRANSFER_SIZES,
    Measurement,
    format_pairs,
    load_measurements,
)
from hardware_profiles.units import unit_factor
from hardware_profiles.whole_files import real_path
from reference_model.formats import multiplied_as
from reference_model.trace import ALL_TO_ALL_KINDS, KINDS
from simulator.calibration.imported_rows import ImportedRows, KernelSet
from simulator.calibration.module_shares import ReadKernel, aside_text, shared_out
from simulator.calibration.table_files import MOST_LINES, FileColumns, every_line_read, read_columns
from simulator.calibration.table_mappings import (
    Array,
    ChosenLines,
    TableMapping,
    TimedKernel,
    column_arithmetic,
    lines_where,
    load_table_mapping,
    mapping_for,
    missing_columns,
    shipped_table_mappings,
    with_names_of,
)
from simulator.hardware.kernels.families import batch_of_rows, check_row
from simulator.hardware.kernels.roofline import (
    DEEPGEMM_TILES,
    ideal_batch_seconds,
    is_tensor,
    least_seconds,
)
from simulator.hardware.network.collective_times import sent_share

FAR_OFF = 200.0
"""Factor from the median of a kernel's ratios to its time at peak that no benchmark strays by, but
a slip between units of time (1,000) does."""
ROUNDING = 1e-6
"""Difference from a whole number that arithmetic leaves."""
LINES_NAMED = 8
"""Line numbers that a warning lists before it only counts."""
COPIED = 0.1
"""Share of equal times from which rows are called copies: rounded times can be equal by chance."""
DEVICE_COLUMNS = ("device", "gpu", "gpu_name", "device_name")
"""Columns that say what GPU a line was measured on."""
VERSION_FOLDER = re.compile(r"^\d+(\.\w+)+$")
"""A folder named by a version: it counts before a column `version`, which benchmarks get wrong."""
FIRST_LINE = 2
"""Of a table's rows, after its heading."""


def import_table(
    path: str | Path,
    *,
    gpu: str,
    mapping: str | None = None,
    stated: Mapping[str, str] | None = None,
) -> ImportedRows:
    """Read a table of kernel times.

    Args:
        gpu: GPU profile that the table was measured on; lines that name another are set aside.
        mapping: shipped name or path; chosen by the columns where not given. A table with this
            project's own columns needs none.
        stated: {column that the table lacks: its value in every line}

    Raises ValueError, one line, for a file that is no table, an unknown layout or missing columns.
    """
    path = Path(path)
    profile = load_gpu(gpu)
    every = every_line_read(path)
    columns = read_columns(path, every=every)
    if mapping is None and tuple(columns) == COLUMNS:
        measured = list(load_measurements(path))[::every]
        for row in measured:
            if row.kind not in TRANSFER_KINDS:
                _check_own(row, path)
        rows, far = _plausible(measured, profile, range(FIRST_LINE, FIRST_LINE + len(measured)))
        return _imported(path, "measurements", rows, far, step=every)
    count = len(next(iter(columns.values())))
    columns = {**columns, **_same_in_every_line(stated or {}, columns, count, path)}
    peaks = {f"peak_{name}": peak for name, peak in profile.peak_compute.items()}
    rules = (
        load_table_mapping(mapping)
        if mapping
        else mapping_for(columns, shipped_table_mappings(), peaks, path.name)
    )
    missing = missing_columns(rules, columns)
    if missing:
        raise ValueError(
            f"{path.name}: column {missing[0]!r} is missing; mapping {rules.name} needs "
            f"{', '.join(rules.columns)}; the table has {', '.join(columns)}; one that is the same "
            "in every line can be given with --column NAME=VALUE"
        )
    if not count:
        raise ValueError(f"{path.name}: the table has columns but no line")
    return _mapped(rules, with_names_of(rules, columns), peaks, profile, path, every)


def _check_own(row: Measurement, path: Path) -> None:
    """Raise ValueError, naming the file, for a row that is of no known kernel."""
    try:
        check_row(row)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    # Tokens may travel without choices: a combine sends none.
    moved = [size for name, size in row.sizes if name != "top_k"]
    if row.kind in ALL_TO_ALL_KINDS and not all(moved):
        raise ValueError(
            f"{path.name}: measurement of {row.source}: sizes: {format_pairs(row.sizes)}; "
            f"allowed: from 1, of {row.kind}, but top_k"
        )


def _mapped(
    rules: TableMapping,
    columns: FileColumns,
    peaks: Mapping[str, float],
    gpu: GpuProfile,
    path: Path,
    every: int,
) -> ImportedRows:
    """The rows of a table whose mapping is known, of which every so many lines were read."""
    aside: dict[str, list[int]] = defaultdict(list)
    usable, copies = of_this_gpu(columns, gpu, aside)
    if rules.unused:
        aside[rules.unused].extend(_line_numbers(usable))
        modules = (path,) if rules.modules else ()
        return replace(_imported(path, rules.name, (), aside, step=every), modules=modules)
    for rule in rules.aside:
        if rule.kind is None:
            found = usable & lines_where(columns, rule.where)
            aside[rule.reason].extend(_line_numbers(found))
            usable &= ~found
    here = tuple(k for k in rules.kernels if k.architecture in (None, gpu.architecture))
    rules = rules.model_copy(update={"kernels": here})
    version, origin = _origin(columns, path)
    known: dict[str, float | Array] = {**peaks, **_looked_up(rules, columns)}
    read = [
        _read_kernel(kernel, rules, columns, known, usable, (version, origin), gpu)
        for kernel in rules.kernels
    ]
    taken = np.zeros_like(usable)
    rows: list[Measurement] = []
    parts: list[str] = []
    shared = shared_out(rules, read, gpu)
    for kernel, whole, answers in zip(rules.kernels, read, shared, strict=True):
        taken |= answers.chosen
        if kernel.aside is not None:
            parts += aside_text(kernel.aside, whole, answers)
            continue
        kept, far = _plausible(answers.rows, gpu, answers.lines)
        rows.extend(kept)
        for reason, numbers in (*answers.problems.items(), *far.items()):
            aside[reason].extend(numbers)
        for rule in rules.aside:
            if rule.kind == kernel.kind:
                aside[rule.reason].extend(
                    _line_numbers(answers.chosen & lines_where(columns, rule.where))
                )
    untouched = usable & ~taken
    if untouched.any():
        aside["no kernel of the mapping"].extend(_line_numbers(untouched))
    sets = _sets_of(rules, rows, version)
    table = _imported(path, rules.name, rows, aside, sets=sets, step=every)
    said = tuple(f"{path.name}: {text}" for text in (*copies, *parts))
    return replace(table, warnings=(*said, *table.warnings))


def _imported(
    path: Path,
    mapping: str,
    rows: Sequence[Measurement],
    aside: Mapping[str, Sequence[int]],
    *,
    sets: tuple[KernelSet, ...] = (),
    step: int,
) -> ImportedRows:
    """Put rows and what was set aside together, with a warning for each reason."""
    thinned = f"{path.name}: over {MOST_LINES} lines: one of {step} is read, from the first on"
    warnings = [thinned] if step > 1 else []
    for reason, lines in aside.items():
        distinct = sorted(set(lines))
        if not distinct:
            continue
        at = ((line - FIRST_LINE) * step + FIRST_LINE for line in distinct[:LINES_NAMED])
        named = ", ".join(map(str, at))
        more = f" and {len(distinct) - LINES_NAMED} more" if len(distinct) > LINES_NAMED else ""
        warnings.append(f"{path.name}: {len(distinct)} x set aside: {reason}: line {named}{more}")
    return ImportedRows(
        measurements=tuple(rows),
        read_by=(f"{mapping}, {len(rows):,} rows",),
        warnings=tuple(warnings),
        sets=sets,
    )


def _line_numbers(chosen: ChosenLines) -> list[int]:
    numbers: list[int] = (np.flatnonzero(chosen) + FIRST_LINE).tolist()
    return numbers


def _same_in_every_line(
    stated: Mapping[str, str], columns: FileColumns, count: int, path: Path
) -> FileColumns:
    """Columns that the user states; ValueError for one that the table has itself."""
    for name in stated:
        if name in columns:
            raise ValueError(f"--column {name}: {path.name} has a column of that name")
    return {name: np.array([value] * count, dtype=object) for name, value in stated.items()}


def of_this_gpu(
    columns: FileColumns, gpu: GpuProfile, aside: dict[str, list[int]]
) -> tuple[ChosenLines, tuple[str, ...]]:
    """[lines] measured on this GPU, those of others set aside; and a warning for rows of it that
    equal another's."""
    count = len(next(iter(columns.values())))
    name = next((column for column in DEVICE_COLUMNS if column in columns), None)
    if name is None:
        return np.ones(count, dtype=np.bool_), ()
    devices, places = np.unique(columns[name].astype(str), return_inverse=True)
    own = np.array([not device or gpu_of_device(device) == gpu.name for device in devices])
    for place, device in enumerate(devices):
        if not own[place]:
            other = gpu_of_device(device)
            whose = "a GPU without a profile" if other is None else f"--gpu {other}"
            reason = f"measured on {device} ({whose}), not on {gpu.name}"
            aside[reason].extend(_line_numbers(places == place))
    usable: ChosenLines = own[places]
    return usable, _copies(columns, name, devices, places, own)


def _copies(
    columns: FileColumns,
    device: str,
    devices: NDArray[Any],
    places: NDArray[np.intp],
    own: NDArray[np.bool_],
) -> tuple[str, ...]:
    """Warnings of rows of this GPU that equal rows of another in every column but the device's."""
    if own.all() or not own.any():
        return ()
    import pandas as pd

    others = {name: cells.astype(str) for name, cells in columns.items() if name != device}
    marks = pd.util.hash_pandas_object(pd.DataFrame(others), index=False).to_numpy()
    mine = np.unique(marks[own[places]])
    found = []
    for place, name in enumerate(devices):
        equal = 0 if own[place] else len(np.intersect1d(mine, marks[places == place]))
        if equal and equal >= COPIED * min(len(mine), int((places == place).sum())):
            rows = "row equals a row" if equal == 1 else "rows equal rows"
            what = "a copy" if equal == 1 else "copies"
            found.append(
                f"{equal} {rows} of {name} to the last digit: {what}, measured on one of the two"
            )
    return tuple(found)


def _origin(columns: FileColumns, path: Path) -> tuple[str, str]:
    """Version of a table, and where its figures come from without the mapping's source: the version
    of its folder, else of its column."""
    folders = [part for part in real_path(path).parent.parts if VERSION_FOLDER.match(part)]
    cells = columns.get("version")
    stated = [] if cells is None else sorted({str(cell) for cell in cells if str(cell)})
    if folders:
        differs = [text for text in stated if text != folders[-1]]
        said = f"; its version column says {' and '.join(differs)}" if differs else ""
        return folders[-1], f"{folders[-1]}, {path.name}{said}"
    if len(stated) == 1:
        return stated[0], f"{stated[0]}, {path.name}"
    return "", path.name


def _looked_up(rules: TableMapping, columns: FileColumns) -> dict[str, Array]:
    """{name: [lines] numbers} of the mapping's lookups."""
    found = {}
    for name, lookup in rules.lookups.items():
        cells = columns.get(lookup.column, np.full(1, ""))
        numbers = [lookup.values.get(str(cell), lookup.otherwise) for cell in cells]
        found[name] = np.array(numbers)
    return found


def _read_kernel(
    kernel: TimedKernel,
    rules: TableMapping,
    columns: FileColumns,
    known: Mapping[str, float | Array],
    usable_lines: ChosenLines,
    origin: tuple[str, str],
    gpu: GpuProfile,
) -> ReadKernel:
    """Rows of one kernel, their line numbers, problems by reason, and the lines it speaks for."""
    chosen = usable_lines & lines_where(columns, kernel.where)
    wanted = chosen.copy()
    for rule in rules.aside:
        if rule.kind == kernel.kind:
            wanted &= ~lines_where(columns, rule.where)
    places = np.flatnonzero(wanted)
    taken = {name: values[places] for name, values in columns.items()}
    at_lines = {
        name: value if isinstance(value, float) or len(value) == 1 else value[places]
        for name, value in known.items()
    }
    problems: dict[str, list[int]] = defaultdict(list)

    def numbers(expression: str | int) -> Array:
        if isinstance(expression, int):
            return np.full(len(places), float(expression))
        return column_arithmetic(expression, taken, at_lines, f"mapping {rules.name}")

    column, unit = _time_of(kernel, columns)
    seconds = numbers(column) * unit_factor(unit, "time")
    sizes = {name: numbers(value) for name, value in kernel.sizes.items()}
    sms = numbers(gpu.sms if kernel.sms is None else kernel.sms)
    usable = np.ones(len(places), dtype=np.bool_)

    def refuse(bad: NDArray[np.bool_], reason: str) -> None:
        nonlocal usable
        for place in places[bad & usable].tolist():
            problems[reason].append(place + FIRST_LINE)
        usable &= ~bad

    refuse(~np.isfinite(seconds), f"{column} is no number")
    refuse(~(seconds > 0), f"{column} is not positive")
    for name, values in sizes.items():
        refuse(~np.isfinite(values), f"{name} is no number")
        refuse(values < 0, f"{name} is negative")
        with np.errstate(invalid="ignore"):
            fraction = np.abs(values - np.round(values))
        refuse(fraction > ROUNDING, f"{name} is no whole number")
        refuse(values > np.iinfo(np.int64).max / 2, f"{name} is not plausible")
        if kernel.kind in KINDS:
            refuse(values > np.iinfo(np.int32).max, f"{name} is not plausible")
    refuse(~((sms >= 1) & (sms <= gpu.sms)), f"sms is not between 1 and {gpu.sms}")
    text_of = _texts_of(kernel, rules, taken, origin[0])
    rows: list[Measurement] = []
    lines: list[int] = []
    names = sorted(sizes)
    whole = [np.where(usable, sizes[name], 0).round().astype(np.int64).tolist() for name in names]
    source = f"{rules.source}, {origin[1]}"
    for number in np.flatnonzero(usable).tolist():
        dtype, conditions = text_of(number)
        unknown = next(
            (text for text in (dtype, dict(conditions)["out_dtype"]) if text not in ELEMENT_TYPES),
            None,
        )
        if unknown is not None:
            problems[f"type {unknown!r} is unknown"].append(int(places[number]) + FIRST_LINE)
            continue
        rows.append(
            Measurement(
                kind=kernel.kind,
                sizes=tuple(zip(names, [values[number] for values in whole], strict=True)),
                dtype=dtype,
                sms=round(float(sms[number])),
                seconds=float(seconds[number]),
                spread=None,
                source=source,
                conditions=conditions,
            )
        )
        lines.append(int(places[number]) + FIRST_LINE)
    return ReadKernel(rows, lines, dict(problems), chosen)


def _time_of(kernel: TimedKernel, columns: FileColumns) -> tuple[str, str]:
    """The column of the time, and its unit."""
    if isinstance(kernel.seconds, str):
        return kernel.seconds, kernel.unit
    return next((name, unit) for name, unit in kernel.seconds.items() if name in columns)


def _texts_of(kernel: TimedKernel, rules: TableMapping, columns: FileColumns, version: str) -> Any:
    """A function from a line to its operand type and conditions, made once for equal cells."""
    fields = [kernel.kernel_set, *kernel.conditions.values()]
    used = {name for text in fields for _, name, _, _ in Formatter().parse(text) if name}
    unknown = sorted(used - {"version"} - set(columns))
    if unknown:
        raise ValueError(f"mapping {rules.name}: {unknown[0]!r} is no column of the table")
    names = sorted((used | {kernel.dtype, kernel.out_dtype}) & set(columns))
    made: dict[tuple[str, ...], tuple[str, tuple[tuple[str, str], ...]]] = {}

    def at(number: int) -> tuple[str, tuple[tuple[str, str], ...]]:
        key = tuple(str(columns[name][number]) for name in names)
        if key not in made:
            cells = {**dict(zip(names, key, strict=True)), "version": version}
            conditions = {
                **{name: text.format_map(cells) for name, text in kernel.conditions.items()},
                "set": kernel.kernel_set.format_map(cells).replace("__", "_").strip("_"),
                "out_dtype": rules.dtypes.get(
                    cells.get(kernel.out_dtype, kernel.out_dtype),
                    cells.get(kernel.out_dtype, kernel.out_dtype),
                ),
            }
            if kernel.part_of:
                conditions["part_of"] = kernel.part_of
            dtype = cells.get(kernel.dtype, kernel.dtype)
            made[key] = (rules.dtypes.get(dtype, dtype), tuple(sorted(conditions.items())))
        return made[key]

    return at


def _sets_of(
    rules: TableMapping, rows: Sequence[Measurement], version: str
) -> tuple[KernelSet, ...]:
    """The kernel sets of some rows, with their rank."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version))
    found: dict[str, KernelSet] = {}
    patterns = [
        (place, kernel, re.sub(r"\\\{\w+\\\}", ".*", re.escape(kernel.kernel_set)))
        for place, kernel in enumerate(rules.kernels)
    ]
    for name, kind in {(row.kernel_set, row.kind): None for row in rows}:
        for place, kernel, pattern in patterns:
            if kernel.kind == kind and re.fullmatch(pattern, name):
                found.setdefault(name, KernelSet(name, numbers, place, kernel.unless_named))
                break
    return tuple(found.values())


def _plausible(
    rows: Sequence[Measurement], gpu: GpuProfile, lines: Sequence[int]
) -> tuple[list[Measurement], dict[str, list[int]]]:
    """Rows whose times can be true on this GPU, and the line numbers of the others by reason."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    refused: dict[int, str] = {}
    too_fast_text = f"faster than the peaks of {gpu.name} allow (another unit or GPU?)"
    for place, row in enumerate(rows):
        if row.kind in TRANSFER_KINDS:
            sizes = dict(row.sizes)
            if set(sizes) != set(TRANSFER_SIZES) or sizes["bytes"] < 1 or sizes["ranks"] < 2:
                refused[place] = f"{row.kind} needs bytes (at least 1) and ranks (at least 2)"
                continue
            sent = sizes["bytes"] * sent_share(row.kind, sizes["ranks"])
            if row.seconds < sent / gpu.nvlink_bandwidth:
                refused[place] = too_fast_text
        if row.kind not in KINDS or {n for n, _ in row.sizes} != set(KINDS[row.kind].sizes):
            continue
        groups[row.kind, row.dtype, row.out_dtype, row.accumulate, row.kernel_set].append(place)
    for places in groups.values():
        multiplied = multiplied_as(rows[places[0]].dtype)
        if multiplied not in gpu.peak_compute and is_tensor(rows[places[0]].kind):
            reason = f"{gpu.name} has no peak for {rows[places[0]].dtype}"
            refused.update(dict.fromkeys(places, reason))
            continue
        batch = batch_of_rows([rows[place] for place in places])
        sms = np.array([rows[place].sms for place in places], dtype=np.float64)
        seconds = np.array([rows[place].seconds for place in places])
        share = least_seconds(batch, sms, gpu, memory_share=1.0) / seconds
        ratio = seconds / np.maximum(
            ideal_batch_seconds(batch, sms, gpu, DEEPGEMM_TILES), unit_factor("us", "time")
        )
        apart = np.maximum(ratio / np.median(ratio), np.median(ratio) / ratio)
        beyond = f"{too_fast_text}; at most {share.max():.2f} of a bound"
        for place, fast, far in zip(places, share > 1.0, apart > FAR_OFF, strict=True):
            if fast:
                refused[place] = beyond
            elif far:
                refused[place] = "far off all other rows of its kernel (another unit?)"
    far_off: dict[str, list[int]] = defaultdict(list)
    for place, reason in sorted(refused.items()):
        far_off[reason].append(lines[place])
    kept = [row for place, row in enumerate(rows) if place not in refused]
    return kept, dict(far_off)


def kernel_sets(rows: Sequence[Measurement]) -> tuple[str, ...]:
    """Kernel sets of some rows, most rows first."""
    counts = Counter(row.kernel_set for row in rows)
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))
