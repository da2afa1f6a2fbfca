"""A file is there whole, or what stood there before is."""

import errno
import os
import resource
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from hardware_profiles.whole_files import (
    MOST_BYTES,
    draft_prefix,
    read_text,
    real_path,
    write_together,
    write_whole,
)


def test_text_replaces_text(tmp_path):
    path = tmp_path / "a.yaml"
    write_whole(path, "old\n")
    write_whole(path, "new\nµ\n")
    assert path.read_bytes() == "new\nµ\n".encode()
    assert [found.name for found in tmp_path.iterdir()] == ["a.yaml"]


def test_a_directory_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"gone/a\.yaml: cannot be written: No such file"):
        write_whole(tmp_path / "gone" / "a.yaml", "x")


def test_a_place_that_is_no_file_keeps_what_is_there(tmp_path):
    """Moving a file to the place of a device, as root may, would be the end of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe: cannot be written: not a file"):
        write_whole(pipe, "x")
    assert pipe.is_fifo()


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


def test_the_draft_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    path = tmp_path / "a.yaml"
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, living = (
        tmp_path / draft_prefix(path).replace(f".{os.getpid()}.", f".{number}.x")
        for number in (ended.pid, os.getppid())
    )
    dead.touch()
    living.touch()
    write_whole(path, "new\n")
    assert set(tmp_path.iterdir()) == {path, living}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the writer runs after it."""


@pytest.mark.parametrize(
    "former", [{}, {"t.csv": "old", "n.yaml": "old", "c.yaml": "t.csv n.yaml"}]
)
@pytest.mark.parametrize("moves", range(5))
def test_a_kill_between_two_moves_leaves_files_of_one_time(former, moves, tmp_path, monkeypatch):
    """Four moves: c.yaml names drafts, t.csv, n.yaml, c.yaml names both."""
    for name, text in former.items():
        (tmp_path / name).write_text(text)
    done = []
    replace, unlink = Path.replace, Path.unlink

    def counted(draft, path):
        if len(done) == moves:
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
            raise Killed
        done.append(path.name)
        return replace(draft, path)

    monkeypatch.setattr(Path, "replace", counted)
    texts = {tmp_path / "t.csv": "new", tmp_path / "n.yaml": "new"}

    def naming(at):
        return " ".join(path.name for path in at.values())

    with nullcontext() if moves == 4 else pytest.raises(Killed):
        write_together(texts, tmp_path / "c.yaml", naming)
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(Path, "replace", replace)
    assert done == ["c.yaml", "t.csv", "n.yaml", "c.yaml"][:moves]
    if former or moves:
        names = (tmp_path / "c.yaml").read_text().split()
        assert [(tmp_path / name).read_text() for name in names] == ["new" if moves else "old"] * 2
    write_together(texts, tmp_path / "c.yaml", naming)
    assert (tmp_path / "c.yaml").read_text() == "t.csv n.yaml"
    # What is left of the killed one bears the number of this process, which lives.
    seen = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert seen == {"t.csv", "n.yaml", "c.yaml"}


@pytest.mark.parametrize("room", range(6))
def test_a_disk_that_fills_up_on_the_way_leaves_the_former_files(room, tmp_path, monkeypatch):
    """Six drafts are written before the first move."""
    for name in ("t.csv", "n.yaml", "c.yaml"):
        (tmp_path / name).write_text("old")
    written = []

    def full(number):
        written.append(number)
        if len(written) > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    texts = {tmp_path / "t.csv": "new", tmp_path / "n.yaml": "new"}
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        write_together(texts, tmp_path / "c.yaml", lambda at: "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "t.csv": "old", "n.yaml": "old", "c.yaml": "old",
    }  # fmt: skip


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


def test_links_in_a_circle_lead_to_one_of_them(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("file")
    assert real_path(tmp_path / "c") == tmp_path / "file"
    assert real_path(tmp_path / "a").parent == tmp_path
    with pytest.raises(ValueError, match=r"/a/file: cannot be written: Too many levels of sym"):
        write_whole(real_path(tmp_path / "a") / "file", "x")
