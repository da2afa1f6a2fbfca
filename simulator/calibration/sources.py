"""Read the measurements given to `calibrate`: tables and profiles of one GPU.

A folder stands for every file below it that can hold measurements; one that no mapping knows is set
aside there, and is an error where it is given by name. Each source has its own mapping. `mappings`
holds texts of two forms:

    SOURCE=NAME    for that source alone (its path as given, or its file name)
    NAME           for every other source of the mapping's format, table or profile

NAME is a shipped mapping or the path of a file. Where none is given, a table's mapping is chosen by
its columns, and a profile's is the one that names most of its kernel time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hardware_profiles.fields import read_yaml
from simulator.calibration.imported_rows import ImportedRows, sources_together
from simulator.calibration.table_files import ENDINGS
from simulator.calibration.table_mappings import table_mappings
from simulator.calibration.tables import import_table
from simulator.calibration.traces import import_trace
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.workload.profile.kernel_mapping import known_mappings, mapping_file

TRACE_ENDINGS = (".json", ".json.gz")
FORMATS = {"table": "tables", "kineto": "profiles"}
"""{format of a mapping: what it is for}"""
SHOWN = 3
"""Files and names that a message says something of."""


def read_sources(
    sources: Sequence[Path],
    *,
    gpu: str,
    mappings: Sequence[str] = (),
    stated: Mapping[str, str] | None = None,
    watch: Watch = unwatched,
) -> ImportedRows:
    """Read every source by its own mapping.

    Args:
        stated: {column that tables lack: its value in every line}
        watch: told what is read, file by file.

    Raises ValueError, one line, for a source that cannot be used, a mapping that is not known or
    that none of the sources takes, and sources without a row.
    """
    files, given = _files(sources)
    chosen = choose_mappings(files, mappings)
    found: list[ImportedRows] = []
    for number, (source, shown) in enumerate(files.items()):
        watch(HowFar(number / len(files), number, "files", what=f"reading {shown}"))
        try:
            if is_trace(source):
                one = import_trace(source, mapping=chosen.get(source), gpu=gpu)
            else:
                one = import_table(source, gpu=gpu, mapping=chosen.get(source), stated=stated)
            found.append(replace(one, read_by=tuple(f"{shown}: {text}" for text in one.read_by)))
        except ValueError as error:
            if source in given:
                raise
            why = str(error).removeprefix(f"{source.name}: ")
            found.append(ImportedRows(measurements=(), warnings=(f"{shown}: not read: {why}",)))
    read = sources_together(found)
    if not read.measurements:
        names = ", ".join(source.name for source in sources)
        left = len(read.warnings) - SHOWN
        more = f"and {left} more of the kind" if left > 0 else ""
        unmapped = map(str, read.unmapped[:SHOWN])
        why = "; ".join(filter(None, (*read.warnings[:SHOWN], more, *unmapped)))
        raise ValueError(f"{names}: no kernel time to calibrate from; {why}")
    return read


def _files(sources: Sequence[Path]) -> tuple[dict[Path, str], frozenset[Path]]:
    """{file: how it is shown} of all sources, and which of them were given by name."""
    files: dict[Path, str] = {}
    given = set()
    for source in sources:
        if not source.is_dir():
            files[source] = source.name
            given.add(source)
            continue
        found = sorted(
            path
            for path in source.rglob("*")
            if path.is_file() and path.name.endswith((*ENDINGS, *TRACE_ENDINGS))
        )
        if not found:
            raise ValueError(
                f"{source}: holds no file of measurements; read are "
                f"{', '.join((*ENDINGS, *TRACE_ENDINGS))}"
            )
        files.update({path: str(path.relative_to(source)) for path in found})
    return files, frozenset(given)


def is_trace(source: Path) -> bool:
    """Whether a source is a profile, by its ending; anything else is a table."""
    return source.name.endswith(TRACE_ENDINGS)


def choose_mappings(sources: Collection[Path], mappings: Sequence[str]) -> dict[Path, str]:
    """{source: the mapping that was given for it}

    Raises ValueError for a mapping of an unknown name, one of the wrong format for its source, one
    that no source takes, and two for one source.
    """
    chosen: dict[Path, str] = {}
    general: dict[str, str] = {}
    for text in mappings:
        of_source, sign, name = text.partition("=")
        if not sign:
            form = _format(text)
            if general.setdefault(form, text) != text:
                raise ValueError(
                    f"--mapping {text}: {general[form]} is given for {FORMATS[form]} already; "
                    "say which source is meant: SOURCE=NAME"
                )
            continue
        meant = [s for s in sources if of_source in (str(s), s.name)]
        if len(meant) != 1:
            raise ValueError(
                f"--mapping {text}: {of_source!r} is {'none' if not meant else 'several'} of the "
                f"sources; allowed: {', '.join(map(str, sources))}"
            )
        if meant[0] in chosen:
            raise ValueError(f"--mapping {text}: {of_source} has {chosen[meant[0]]} already")
        wanted = "kineto" if is_trace(meant[0]) else "table"
        if _format(name) != wanted:
            raise ValueError(f"--mapping {text}: {name} is for {FORMATS[_format(name)]}")
        chosen[meant[0]] = name
    for form, name in general.items():
        taking = [s for s in sources if is_trace(s) == (form == "kineto") and s not in chosen]
        if not taking:
            raise ValueError(f"--mapping {name}: is for {FORMATS[form]}; no source takes it")
        chosen.update(dict.fromkeys(taking, name))
    return chosen


def _format(name_or_path: str) -> str:
    """Format that a mapping file states: a key of FORMATS."""
    every = sorted((*table_mappings(), *known_mappings()))
    path, where = mapping_file(name_or_path, every)
    raw: Mapping[str, object] = read_yaml(path, where=where)
    form = raw.get("format")
    if str(form) not in FORMATS:
        raise ValueError(f"{where}: format: {form!r} is not allowed; allowed: {', '.join(FORMATS)}")
    return str(form)
