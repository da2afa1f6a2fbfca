"""Calibrate: held-out errors are real, noise is measured, files are complete and load again."""

from pathlib import Path

import numpy as np
import pytest
from made_up_rows import BASE, made_up, row

from hardware_profiles.schema import load_calibration, load_cluster, load_gpu
from hardware_profiles.tables import load_measurements, table_path, write_measurements
from simulator.calibration.fit import calibrate_to_file, fit_calibration, fit_families
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "measured"
H800 = load_gpu("h800_sxm")
FLOOR = BASE.kernel_floor.value


def test_a_kernel_that_follows_its_roofline_is_predicted_without_its_rows():
    (fit,), held_out = fit_families(made_up(), gpu=H800, floor=FLOOR, tiles=BASE.tiles)
    assert fit.interpolated.median < 0.05
    assert fit.interpolated.rows + fit.edge.rows == fit.rows == len(held_out) == 56
    assert fit.coverage["m"] == (256, 16384)
    assert len(fit.worst) == 10


def test_the_error_of_noisy_rows_is_at_least_their_noise():
    quiet, noisy = (
        fit_families(made_up(noise=noise), gpu=H800, floor=FLOOR, tiles=BASE.tiles)[0][0]
        for noise in (0.0, 0.2)
    )
    assert noisy.interpolated.median > 0.07
    assert noisy.interpolated.quantile_80 > 2 * quiet.interpolated.quantile_80


def test_the_noise_floor_is_how_far_rows_of_one_tile_lie_apart():
    rows = [row(m, 4096, 7168, 2e-5) for m in (1, 2, 3, 4)]
    rows.append(row(64, 4096, 7168, 3e-5))
    (fit,), _ = fit_families(rows, gpu=H800, floor=FLOOR, tiles=BASE.tiles)
    assert fit.noise.rows == 5
    assert fit.noise.worst == pytest.approx(1 / 3, abs=0.2)
    assert fit.noise.median == 0


def test_versions_of_a_kernel_never_share_a_fit():
    both = [*made_up(kernel_set="old", slower=2.0), *made_up(kernel_set="new")]
    apart = fit_families(both, gpu=H800, floor=FLOOR, tiles=BASE.tiles)[0]
    alone = fit_families(made_up(kernel_set="new"), gpu=H800, floor=FLOOR, tiles=BASE.tiles)[0]
    assert [fit.kernel_set for fit in apart] == ["new", "old"]
    assert apart[0] == alone[0]


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


def test_families_of_few_rows_are_named_and_so_are_rows_that_decide_nothing(tmp_path):
    path = tmp_path / "few.csv"
    copies = load_measurements(table_path("host/h200_sxm_transfers"))
    peer = [row for row in copies if row.kind == "peer_copy"]
    write_measurements(path, [*made_up()[:3], *peer])
    result = fit_calibration([path], gpu="h200_sxm", name="few", base=BASE)
    assert result.profile.fits == ()
    assert result.warnings[:2] == (
        "21 rows are of no kernel or collective operation and decide nothing: peer_copy",
        "3 rows of fewer than 5 sizes a family are not judged: gemm",
    )


@pytest.mark.shared
def test_left_out_rows_of_the_h200_tables_are_within_their_targets():
    files = ["mla_decode.csv", "mla_prefill.csv"]
    if not all((SHARED / "h200" / file).is_file() for file in files):
        pytest.skip(f"no {SHARED / 'h200'}")
    # Either type of cache: without names one of the two would be taken.
    sets = [
        f"aiconfigurator_flash_attention_{phase}_{cache}_cache"
        for phase in ("decode", "prefill")
        for cache in ("bfloat16", "fp8")
    ]
    result = fit_calibration(
        [SHARED / "h200" / file for file in files], gpu="h200_sxm", name="x", base=BASE, sets=sets
    )
    for kind, (median, p90) in {"mla_decode": (0.02, 0.07), "mla_prefill": (0.02, 0.09)}.items():
        errors = [
            abs(one.error)
            for one in result.held_out
            if one.measurement.kind == kind and not one.edge
        ]
        assert np.median(errors) <= median
        assert np.quantile(errors, 0.9) <= p90
