"""Files of a calibration are complete, load again, and replace nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_rows import low_latency_rows, made_up

from hardware_profiles.low_latency_kernels import load_low_latency
from hardware_profiles.schema import load_calibration, load_cluster
from hardware_profiles.tables import load_measurements, write_measurements
from simulator.calibration.calibration_files import calibrate_to_file
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements


def test_a_calibration_written_to_a_file_loads_and_predicts(tmp_path):
    source, out = tmp_path / "rows.csv", tmp_path / "mine.yaml"
    write_measurements(source, made_up())
    result, written = calibrate_to_file([source], gpu="h800_sxm", out=out, base=None)
    assert written == [out, out.with_suffix(".csv")]
    loaded = load_calibration(str(out))
    assert loaded.fits == result.profile.fits
    assert loaded.kernel_sets == ("made_up",)
    assert len(load_measurements(Path(loaded.measurements[0]))) == 56
    model = KernelCostModel(
        cluster=load_cluster("h800_2048"), calibration=loaded, expert_parallel_ranks=8
    ).fit(calibration_measurements(loaded))
    sizes = {"m": np.array([3000]), "n": np.array([4096]), "k": np.array([7168])}
    predicted = model.predict_sizes(
        "gemm", sizes, dtype="fp8_e4m3", out_dtype="bfloat16", sms=132, overlapped=False
    )
    truth = 5e-6 + 2 * 3000 * 4096 * 7168 / (0.6 * 1979e12)
    assert predicted.seconds[0] == pytest.approx(truth, rel=0.1)
    assert predicted.provenance_names() == ["interpolated"]


def test_a_calibration_names_its_files_from_its_own_folder_and_can_be_moved(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_measurements(tmp_path / "rows.csv", made_up())
    source = tmp_path / "rows.csv"
    calibrate_to_file([source], gpu="h800_sxm", out=here / "mine.yaml", base=None)
    assert "- ./mine.csv\n" in (here / "mine.yaml").read_text(encoding="utf-8")
    here.rename(there)
    moved = load_calibration(str(there / "mine.yaml"))
    assert moved.measurements == (str(there / "mine.csv"),)
    assert len(calibration_measurements(moved)) == 56
    # Written again, it may replace the table that it rests on.
    calibrate_to_file([source], gpu="h800_sxm", out=there / "mine.yaml", base=None)


def test_rows_timed_in_turns_take_no_part_in_the_fit_of_bursts(tmp_path):
    bursts = made_up()
    turns = [
        replace(
            row,
            seconds=2 * row.seconds,
            conditions=(*row.conditions, ("state", "sustained"), ("job", "prefill")),
        )
        for row in bursts
    ]
    found = []
    for name, rows in (("bursts", bursts), ("both", [*bursts, *turns])):
        write_measurements(tmp_path / f"{name}_rows.csv", rows)
        result, _ = calibrate_to_file(
            [tmp_path / f"{name}_rows.csv"],
            gpu="h800_sxm",
            out=tmp_path / f"{name}.yaml",
            base=None,
        )
        found.append(result)
    assert found[0].profile.fits == found[1].profile.fits
    assert len(found[1].read.measurements) == 112
    warning, *_ = found[1].read.warnings
    assert warning.startswith("56 rows of operators timed among the others of a step")


def test_low_latency_kernels_are_written_and_named_beside_a_calibration(tmp_path):
    timed = [
        replace(row, source="made up", conditions=(*row.conditions, ("set", "made_up")))
        for row in low_latency_rows()
    ]
    source, out = tmp_path / "rows.csv", tmp_path / "mine.yaml"
    write_measurements(source, [*made_up(), *timed])
    result, written = calibrate_to_file([source], gpu="h800_sxm", out=out, base=None)
    assert written[2:] == [tmp_path / "mine_low_latency.yaml"]
    # They are no kernels of a layer.
    assert {fit.kind for fit in result.profile.fits} == {"gemm"}
    named = load_calibration(str(out)).low_latency_kernels
    assert named == str(tmp_path / "mine_low_latency.yaml")
    assert load_low_latency(named).rows[0].ranks == 8


def test_kernels_without_a_row_are_answered_for_by_the_calibration_of_the_gpu(tmp_path):
    source, out = tmp_path / "rows.csv", tmp_path / "mine.yaml"
    write_measurements(source, made_up())
    result, _ = calibrate_to_file([source], gpu="h800_sxm", out=out, base=None)
    mine, shipped = load_calibration(str(out)), load_calibration("h800_sxm")
    assert (mine.completed_by, mine.restated_from) == (("h800_sxm",), shipped.restated_from)
    assert result.completed[0].startswith("h800_sxm: add, attention_backward, ")
    one_norm = {"rows": np.array([4096]), "columns": np.array([7168])}
    of_mine, of_shipped = (
        KernelCostModel(cluster=load_cluster("h800_2048"), calibration=of, expert_parallel_ranks=8)
        .fit(calibration_measurements(of))
        .predict_sizes(
            "rmsnorm", one_norm, dtype="bfloat16", out_dtype="bfloat16", sms=132, overlapped=False
        )
        for of in (mine, shipped)
    )
    assert of_mine.seconds.tolist() == of_shipped.seconds.tolist()
    assert of_mine.provenance_names() == of_shipped.provenance_names()


def test_no_calibration_writes_over_its_source_or_a_table_of_somebody_else(tmp_path):
    source, out = tmp_path / "t.csv", tmp_path / "t.yaml"
    write_measurements(source, made_up())
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"would replace the source .*t\.csv; allowed"):
        calibrate_to_file([source], gpu="h800_sxm", out=out, base=None)
    moved = source.rename(tmp_path / "rows.csv")
    source.write_text("notes of my own\n")
    with pytest.raises(ValueError, match=r"would replace .*t\.csv, which no calibration of that"):
        calibrate_to_file([moved], gpu="h800_sxm", out=out, base=None)
    assert source.read_text() == "notes of my own\n"
    assert not out.exists()
    source.unlink()
    calibrate_to_file([moved], gpu="h800_sxm", out=out, base=None)
    calibrate_to_file([moved], gpu="h800_sxm", out=out, base=None)
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "h900"}, "unknown GPU"),
        ({"out": "mine.txt"}, "ending in .yaml"),
        ({"out": "/nowhere/mine.yaml"}, "no directory"),
        ({"mappings": ("nothing",)}, "unknown mapping"),
        ({"sets": ("nothing",)}, "kernel set 'nothing'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, changes, message):
    source = tmp_path / "rows.csv"
    write_measurements(source, made_up())
    values = {"gpu": "h800_sxm", "out": tmp_path / "mine.yaml", "base": None}
    values |= {**changes, **({"out": Path(changes["out"])} if "out" in changes else {})}
    with pytest.raises(ValueError, match=message) as error:
        calibrate_to_file([source], **values)
    assert "\n" not in str(error.value)
