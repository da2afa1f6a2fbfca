"""A file is there whole, or what stood there before is."""

import resource

import pytest

from hardware_profiles.whole_files import write_whole


def test_text_replaces_text(tmp_path):
    path = tmp_path / "a.yaml"
    write_whole(path, "old\n")
    write_whole(path, "new\nµ\n")
    assert path.read_bytes() == "new\nµ\n".encode()
    assert [found.name for found in tmp_path.iterdir()] == ["a.yaml"]


def test_a_directory_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"gone/a\.yaml: cannot be written: No such file"):
        write_whole(tmp_path / "gone" / "a.yaml", "x")


def test_a_write_that_fails_leaves_what_stood_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.yaml"
    write_whole(path, "old\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match="cannot be written: File too large"):
            write_whole(path, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old\n"
    assert [found.name for found in tmp_path.iterdir()] == ["a.yaml"]
