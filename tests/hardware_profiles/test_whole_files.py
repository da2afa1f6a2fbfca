"""A file is there whole, or what stood there before is."""

import resource
from pathlib import Path

import pytest

from hardware_profiles.whole_files import MOST_BYTES, read_text, write_whole


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


def test_what_is_no_text_file_of_a_sensible_size_is_one_line(tmp_path):
    large, binary, loop = tmp_path / "large", tmp_path / "binary", tmp_path / "loop"
    with large.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    binary.write_bytes(b"\xff\xfe\x00")
    loop.symlink_to(loop)
    for path, reason in (
        (Path("/dev/zero"), "not a file"),
        (tmp_path, "not a file"),
        (large, "268435457 bytes; allowed: at most 268435456"),
        (binary, "not UTF-8 text"),
        (loop, "Too many levels of symbolic links"),
        (tmp_path / "gone", "No such file or directory"),
    ):
        with pytest.raises(ValueError, match=f"^here: cannot be read: {reason}$"):
            read_text(path, where="here")
    binary.write_bytes("µ".encode())
    assert read_text(binary, where="here") == "µ"
