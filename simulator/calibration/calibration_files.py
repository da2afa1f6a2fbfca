"""Write a calibration as the files that runs read: inputs, fits, and the tables they rest on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardware_profiles.fields import ROOT, read_yaml
from hardware_profiles.profile_files import files_beside, read_profile
from hardware_profiles.schema import (
    CalibrationProfile,
    known_calibrations,
    load_calibration,
    load_gpu,
)
from hardware_profiles.tables import table_path, table_text
from hardware_profiles.whole_files import is_draft_of, real_path, write_together
from simulator.calibration.collective_fit import beside_text
from simulator.calibration.fit import COLLECTIVES, Calibration, fit_calibration
from simulator.calibration.low_latency_fit import low_latency_kernels
from simulator.calibration.normal_fit import SOURCE, normal_kernels
from simulator.execution.progress import Watch, unwatched

DEFAULT_BASE = "h800_sxm"


def profile_text(profile: CalibrationProfile, raw_base: Mapping[str, Any]) -> str:
    """The calibration as a YAML file: inputs as the base states them, fits as they were found."""
    import yaml

    raw: dict[str, Any] = {
        "name": profile.name,
        "gpu": profile.gpu,
        "measurements": list(profile.measurements),
        "kernel_sets": list(profile.kernel_sets),
        "completed_by": list(profile.completed_by),
        "restated_from": list(profile.restated_from),
        "basis": profile.basis,
    }
    left = {*raw, "fits"} | (set() if profile.kernels else {"kernels"})
    kept = {key: value for key, value in raw_base.items() if key not in left}
    head = yaml.safe_dump({**raw, **kept}, sort_keys=False, allow_unicode=True, width=100)
    fits = [fit.model_dump(mode="json", exclude_none=True) for fit in profile.fits]
    lines = [
        "# Written by `dsv3sim calibrate`; inputs that no table holds are copied from the base.\n",
        head,
    ]
    if fits:
        lines.append("fits:\n")
        for fit in fits:
            text = yaml.safe_dump(fit, sort_keys=False, default_flow_style=None, width=1000)
            lines.append("  - " + text.rstrip().replace("\n", "\n    ") + "\n")
    return "".join(lines)


def calibrate_to_file(
    sources: Sequence[Path],
    *,
    gpu: str,
    out: Path,
    mappings: Sequence[str] = (),
    base: str | None,
    sets: Sequence[str] = (),
    stated: Mapping[str, str] | None = None,
    gpus_per_node: int | None = None,
    watch: Watch = unwatched,
) -> tuple[Calibration, list[Path]]:
    """Fit a calibration and write it; returns the result and the files written.

    Args:
        base: calibration whose other inputs are taken over, and which answers for kernels without
            a row: the GPU's own where not given (an engine's kernels, for most), else that of the
            H800, the only one with a published overlapped pair.

    Raises ValueError for sources that cannot be used and an `out` that cannot be written.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {out}: allowed: a file ending in .yaml")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no directory {out.parent}")
    load_gpu(gpu)
    check_outputs(out, sources)
    name = base_of(gpu, base)
    raw, _ = read_profile("calibrations", name)
    base_profile = load_calibration(name)
    # A base without rows is answered for by others alone. No calibration completes itself.
    rows_of = (name,) if base_profile.measurements else base_profile.restated_from
    whose = tuple(dict.fromkeys((*rows_of, *base_profile.completed_by)))
    shipped = real_path(out).parent == real_path(ROOT / "calibrations")
    result = fit_calibration(
        sources,
        gpu=gpu,
        name=out.stem,
        base=base_profile,
        completed_by=() if shipped else whose,
        mappings=mappings,
        sets=sets,
        stated=stated,
        gpus_per_node=gpus_per_node,
        watch=watch,
    )
    return result, write_calibration(result, out, base_raw=raw, sources=sources)


def base_of(gpu: str, base: str | None) -> str:
    """The calibration whose other inputs are taken over: the one named, else the GPU's own, else
    that of the H800."""
    return base or (gpu if gpu in known_calibrations() else DEFAULT_BASE)


def check_outputs(out: Path, sources: Sequence[Path]) -> None:
    """Refuse a calibration whose files would replace a source, or a table that is not its own.

    A table beside `out` is its own where the calibration that stands there rests on it.
    """
    table, beside = _table_to_write(out, sources), _to_write_beside(out)
    way_out = f"allowed: another name, such as --out {out.with_stem(f'{out.stem}_calibration')}"
    stands = files_beside(read_yaml(out, where=str(out)), out) if out.exists() else {}
    for named, path in beside.items():
        if path.exists() and not _is_own(path, [stands.get(named)]):
            raise ValueError(
                f"--out {out}: would replace {path}, which no calibration of that name rests on; "
                f"{way_out}"
            )
    for written in (out, table, *beside.values()):
        if written is not None and real_path(written) in {real_path(source) for source in sources}:
            raise ValueError(f"--out {out}: would replace the source {written}; {way_out}")
    if table is None or not table.exists():
        return
    rests_on = stands.get("measurements")
    if not isinstance(rests_on, list) or not _is_own(table, rests_on):
        raise ValueError(
            f"--out {out}: would replace {table}, which no calibration of that name rests on; "
            f"{way_out}"
        )


def _is_own(path: Path, rests_on: Iterable[object]) -> bool:
    """Whether what a calibration rests on is a file, or a draft of it that a killed run left."""
    named = set(map(str, rests_on))
    return bool({str(path), path.stem} & named) or any(
        is_draft_of(Path(name), path) for name in named
    )


def _shipped_tables() -> dict[Path, str]:
    return {real_path(path): path.stem for path in (ROOT / "measurements").glob("*.csv")}


def _table_to_write(out: Path, sources: Sequence[Path]) -> Path | None:
    """Where the rows of a calibration are written; None where this project's own tables hold them.

    Beside `out` with the ending .csv, for a shipped calibration among the shipped tables.
    """
    if {real_path(source) for source in sources} <= _shipped_tables().keys():
        return None
    if real_path(out).parent == real_path(ROOT / "calibrations"):
        return table_path(out.stem)
    return real_path(out.with_suffix(".csv"))


_NORMAL, _LOW_LATENCY = "_normal", "_low_latency"
"""What the names of a calibration's own normal and low-latency kernels end in."""


def _to_write_beside(out: Path) -> dict[str, Path]:
    """{field that names it: file beside `out`, for a shipped calibration among its like}"""
    shipped = real_path(out).parent == real_path(ROOT / "calibrations")
    folders = {
        "collectives": (COLLECTIVES, "transports"),
        "normal_kernels": (_NORMAL, "normal"),
        "low_latency_kernels": (_LOW_LATENCY, "low_latency"),
    }
    return {
        named: (ROOT / folder if shipped else real_path(out).parent) / f"{out.stem}{ending}.yaml"
        for named, (ending, folder) in folders.items()
    }


def _from(out: Path, path: Path) -> str:
    """What a calibration calls a file: by its name alone where both lie in one folder."""
    beside = real_path(path).parent == real_path(out).parent
    return f"./{path.name}" if beside else str(path)


def write_calibration(
    result: Calibration, out: Path, *, base_raw: Mapping[str, Any], sources: Sequence[Path]
) -> list[Path]:
    """Write a calibration, the table it rests on, its transport, and its normal and low-latency
    kernels; returns the files written.

    Whenever this is killed, the calibration rests on the files that it was written with: it is the
    former one or this one.
    """
    table, shipped = _table_to_write(out, sources), _shipped_tables()
    beside = {}
    if result.transport is not None:
        beside["collectives"] = beside_text(result.transport[0])
    if result.normal:
        raw = normal_kernels(
            f"{out.stem}{_NORMAL}", result.normal, gpus=[result.profile.gpu], source=SOURCE
        )
        beside["normal_kernels"] = beside_text(raw)
    if result.low_latency is not None:
        raw = low_latency_kernels(f"{out.stem}{_LOW_LATENCY}", result.low_latency)
        beside["low_latency_kernels"] = beside_text(raw)
    places = {named: path for named, path in _to_write_beside(out).items() if named in beside}
    texts = {path: beside[named] for named, path in places.items()}
    if table is not None:
        texts = {table: table_text(result.read.measurements), **texts}

    def text_naming(at: Mapping[Path, Path]) -> str:
        if table is None:
            names = [shipped[real_path(source)] for source in sources]
        else:
            shipped_table = at[table] == table_path(out.stem)
            names = [table.stem if shipped_table else _from(out, at[table])]
        profile = result.profile.model_copy(update={"measurements": tuple(names)})
        return profile_text(
            profile, {**base_raw, **{named: _from(out, at[path]) for named, path in places.items()}}
        )

    write_together(texts, out, text_naming)
    return [out, *texts]
