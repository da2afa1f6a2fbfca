"""Times that a process keeps for the next one: the same to the last bit, or none."""

import dataclasses

import pytest
from cost_models import CALIBRATION, ROWS, gemm

from hardware_profiles.schema import load_calibration, load_gpu
from simulator.hardware.kernels import completed, kept_times
from simulator.hardware.kernels.completed import CompletedKernels, completed_kernels
from simulator.hardware.kernels.families import family_of
from simulator.hardware.kernels.kept_times import (
    files_behind,
    read_times,
    times_digest,
    write_times,
)

FAMILY = ("gemm", "fp8_e4m3", "bfloat16", False)
TIMES = {
    (False, FAMILY): {
        ((("k", 7168), ("m", 64), ("n", 512)), 132): (1 / 3, 0.1, 5e-324, 2, 1e15),
        ((("k", 7168), ("m", 65), ("n", 512)), 112): (1e-6, 1e-7, 2e-6, 0, 3.0),
    },
    (True, ("add", "bfloat16", "bfloat16", True)): {
        ((("columns", 1024), ("rows", 7)), 20): (0.1 + 0.2, 0.25, 0.5, 3, 12.0)
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the user's files lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dsv3sim" / "kernel_times"


def test_times_read_back_to_the_last_bit():
    write_times("a", TIMES)
    assert read_times("a") == TIMES
    assert read_times("b") == {}


def test_more_times_than_a_file_should_hold_are_not_kept(monkeypatch):
    monkeypatch.setattr(kept_times, "MOST_KEPT", 2)
    write_times("a", TIMES)
    assert read_times("a") == {}


def test_other_inputs_rows_or_code_are_another_file(monkeypatch):
    known = times_digest(("a",), ROWS)
    assert times_digest(("a",), list(ROWS)) == known
    assert times_digest(("b",), ROWS) != known
    assert times_digest(("a",), ROWS[1:]) != known
    monkeypatch.setattr(kept_times, "_code_digest", lambda: "other code")
    assert times_digest(("a",), ROWS) != known


def test_kernels_begin_with_the_times_that_were_kept_and_work_out_the_others(folder, monkeypatch):
    asked = []
    of_batch = CompletedKernels.of_batch

    def counting(self, family, batch, sms, overlapped):
        asked.append(len(batch))
        return of_batch(self, family, batch, sms, overlapped)

    monkeypatch.setattr(CompletedKernels, "of_batch", counting)

    def times(*rows):
        kernels = CompletedKernels(CALIBRATION, load_gpu("h800_sxm"), ROWS)
        kernels.begin_with_kept(("a",))
        found = kernels.times(
            family_of(gemm(1, 1, 1)), [(gemm(m, 1536, 7168), 132) for m in rows], False
        )
        kernels.keep_times()
        return found

    first = times(100, 4096)
    assert times(100, 4096) == first
    assert times(4096, 5000, 100)[::2] == first[::-1]
    assert asked == [2, 1]
    assert len(list(folder.iterdir())) == 1


def test_one_row_that_is_another_makes_every_time_anew(folder):
    """Of a calibration whose table was changed in place, no time of the former table is given."""

    def seconds(rows):
        kernels = completed_kernels(CALIBRATION, load_gpu("h800_sxm"), rows)
        (time,) = kernels.times(family_of(gemm(1, 1, 1)), [(gemm(100, 1536, 7168), 132)], False)
        kernels.keep_times()
        return time[0]

    first = seconds(ROWS)
    slower = [dataclasses.replace(row, seconds=2 * row.seconds) for row in ROWS]
    assert seconds(slower) == pytest.approx(2 * first, rel=1e-9)
    assert len(list(folder.iterdir())) == 2
    completed._completed.cache_clear()
    assert seconds(ROWS) == first
    assert len(list(folder.iterdir())) == 2


def test_what_a_shipped_calibration_names_is_read_once_and_looked_up_by_the_next_process(
    folder, monkeypatch
):
    """Kernel times of an H800 rest on those of an H200's reference kernels as well."""
    kept_times._named_in.cache_clear()
    h800 = load_calibration("h800_sxm")
    first = list(files_behind(h800))
    assert len(list((folder.parent / "calibrations").iterdir())) == 1
    h200 = load_calibration("h200_sxm_reference")
    assert (*h800.completed_by, *h800.restated_from) == ("h200_sxm_reference",)
    assert (*h200.completed_by, *h200.restated_from) == ()
    # The H800; the other calibration, its GPU, and each of its tables.
    assert len(first) == 3 + len(h200.measurements)
    kept_times._named_in.cache_clear()
    monkeypatch.setattr(kept_times, "load_calibration", lambda name: pytest.fail("read again"))
    assert list(files_behind(h800)) == first
    kept_times._named_in.cache_clear()
