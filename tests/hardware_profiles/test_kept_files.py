"""Texts that a process keeps for the next one: as they were, or none."""

import os
import resource

import pytest

from hardware_profiles import kept_files
from hardware_profiles.kept_files import code_digest, digest_of, keep, read_kept

TEXT = "[0.1, 5e-324]\nΩ" + 100 * " 7"


@pytest.fixture
def folder(tmp_path):
    """Where texts are kept; made when the first is."""
    return tmp_path / "kept" / "sums"


def test_a_text_reads_back_under_its_digest_alone(folder):
    keep(folder, "a", TEXT)
    assert read_kept(folder, "a") == TEXT
    assert read_kept(folder, "b") is None


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, -1])
def test_a_file_that_is_cut_short_is_as_good_as_none(folder, cut):
    keep(folder, "a", TEXT)
    path = folder / "a.json"
    path.write_bytes(path.read_bytes()[:cut])
    assert read_kept(folder, "a") is None
    keep(folder, "a", TEXT)
    assert read_kept(folder, "a") == TEXT


def test_a_file_with_one_other_byte_is_as_good_as_none(folder):
    keep(folder, "a", TEXT)
    path = folder / "a.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_kept(folder, "a") is None, place


def test_a_file_of_other_inputs_under_this_name_is_as_good_as_none(folder):
    keep(folder, "a", TEXT)
    os.rename(folder / "a.json", folder / "b.json")
    assert read_kept(folder, "b") is None


def test_a_folder_that_cannot_be_written_keeps_nothing_and_hinders_nothing(tmp_path):
    folder = tmp_path / "file" / "below"
    (tmp_path / "file").touch()
    keep(folder, "a", TEXT)
    assert read_kept(folder, "a") is None


def test_what_is_no_file_is_as_good_as_none_and_stays(folder):
    """Reading a pipe that nobody writes to would wait for ever."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / "a.json")
    (folder / "b.json").mkdir()
    for digest in "ab":
        assert read_kept(folder, digest) is None
        keep(folder, digest, TEXT)
    assert (folder / "a.json").is_fifo()
    assert (folder / "b.json").is_dir()


def test_a_full_disk_leaves_the_former_file_and_no_draft(folder):
    keep(folder, "a", TEXT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        keep(folder, "a", 2 * TEXT)
        keep(folder, "b", TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_kept(folder, "a") == TEXT
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_processes_that_write_one_file_at_once_leave_that_of_one_of_them(folder):
    """Readers meanwhile find a whole file, whichever it is."""
    texts = [TEXT, "2"]
    keep(folder, "a", TEXT)
    writers = []
    for text in texts:
        writer = os.fork()
        if writer == 0:
            for _ in range(100):
                keep(folder, "a", text)
            os._exit(0)
        writers.append(writer)
    found = [read_kept(folder, "a") for _ in range(200)]
    assert [os.waitpid(writer, 0)[1] for writer in writers] == [0, 0]
    assert set(found) <= set(texts)
    assert read_kept(folder, "a") in texts
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_the_oldest_files_go(folder, monkeypatch):
    monkeypatch.setattr(kept_files, "MOST_FILES", 2)
    for age, name in enumerate("abc"):
        keep(folder, name, TEXT)
        os.utime(folder / f"{name}.json", (age, age))
    keep(folder, "d", TEXT)
    assert sorted(path.stem for path in folder.iterdir()) == ["c", "d"]


def test_a_digest_tells_parts_apart_and_knows_a_file_by_what_it_holds(tmp_path):
    path = tmp_path / "one"
    path.write_text("text", encoding="utf-8")
    assert digest_of(("a", path)) == digest_of(("a", "text"))
    assert digest_of(("ab", "c")) != digest_of(("a", "bc"))


def test_another_kind_of_cpu_is_other_code(monkeypatch, tmp_path):
    """Its last bits may differ, and a home may be that of several machines."""
    module = tmp_path / "module.py"
    module.write_text("1 + 1", encoding="utf-8")
    known = code_digest([module])
    assert code_digest([module]) == known
    monkeypatch.setattr(kept_files, "_kind_of_cpu", lambda: "one without AVX-512")
    assert code_digest([module]) != known
