"""Times that a process keeps for the next one: the same to the last bit, or none."""

import dataclasses
import os
import resource

import pytest
from cost_models import CALIBRATION, ROWS, gemm

from hardware_profiles.schema import load_gpu
from simulator.hardware.kernels import completed, kept_times
from simulator.hardware.kernels.completed import CompletedKernels, completed_kernels
from simulator.hardware.kernels.families import family_of
from simulator.hardware.kernels.kept_times import read_times, times_digest, write_times

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


@pytest.mark.parametrize("cut", [0, 1, 70, 100, -1])
def test_a_file_that_is_cut_short_is_as_good_as_none(folder, cut):
    write_times("a", TIMES)
    path = folder / "a.json"
    path.write_bytes(path.read_bytes()[:cut])
    assert read_times("a") == {}
    write_times("a", TIMES)
    assert read_times("a") == TIMES


def test_a_file_with_one_other_byte_is_as_good_as_none(folder):
    write_times("a", TIMES)
    path = folder / "a.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_times("a") == {}, place


def test_a_file_of_other_inputs_under_this_name_is_as_good_as_none(folder):
    write_times("a", TIMES)
    os.rename(folder / "a.json", folder / "b.json")
    assert read_times("b") == {}


def test_a_folder_that_cannot_be_written_keeps_nothing_and_hinders_nothing(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    write_times("a", TIMES)
    assert read_times("a") == {}


def test_what_is_no_file_is_as_good_as_none_and_stays(folder):
    """Reading a pipe that nobody writes to would wait for ever."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / "a.json")
    (folder / "b.json").mkdir()
    for digest in "ab":
        assert read_times(digest) == {}
        write_times(digest, TIMES)
    assert (folder / "a.json").is_fifo()
    assert (folder / "b.json").is_dir()


def test_a_full_disk_leaves_the_former_file_and_no_draft(folder):
    write_times("a", TIMES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        write_times("a", {next(iter(TIMES)): next(iter(TIMES.values()))})
        write_times("b", TIMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_times("a") == TIMES
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_processes_that_write_one_file_at_once_leave_that_of_one_of_them(folder):
    """Readers meanwhile find a whole file, whichever it is."""
    family, kernels = next(iter(TIMES.items()))
    others = [{family: dict([entry])} for entry in kernels.items()]
    write_times("a", others[0])
    writers = []
    for times in others:
        writer = os.fork()
        if writer == 0:
            for _ in range(100):
                write_times("a", times)
            os._exit(0)
        writers.append(writer)
    found = [read_times("a") for _ in range(200)]
    assert [os.waitpid(writer, 0)[1] for writer in writers] == [0, 0]
    assert all(times in others for times in found)
    assert read_times("a") in others
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_more_times_than_a_file_should_hold_are_not_kept(monkeypatch):
    monkeypatch.setattr(kept_times, "MOST_KEPT", 2)
    write_times("a", TIMES)
    assert read_times("a") == {}


def test_the_oldest_files_go(folder, monkeypatch):
    monkeypatch.setattr(kept_times, "MOST_FILES", 2)
    for age, name in enumerate("abc"):
        write_times(name, TIMES)
        os.utime(folder / f"{name}.json", (age, age))
    write_times("d", TIMES)
    assert sorted(path.stem for path in folder.iterdir()) == ["c", "d"]


def test_other_inputs_rows_or_code_are_another_file(monkeypatch):
    known = times_digest(("a",), ROWS)
    assert times_digest(("a",), list(ROWS)) == known
    assert times_digest(("b",), ROWS) != known
    assert times_digest(("a",), ROWS[1:]) != known
    monkeypatch.setattr(kept_times, "_code_digest", lambda: "other code")
    assert times_digest(("a",), ROWS) != known


def test_another_kind_of_cpu_is_other_code(monkeypatch):
    """Its last bits may differ, and a home may be that of several machines."""
    kept_times._code_digest.cache_clear()
    known = kept_times._code_digest()
    kept_times._code_digest.cache_clear()
    assert kept_times._code_digest() == known
    monkeypatch.setattr(kept_times, "_kind_of_cpu", lambda: "one without AVX-512")
    kept_times._code_digest.cache_clear()
    assert kept_times._code_digest() != known
    kept_times._code_digest.cache_clear()


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
