"""dsv3sim replay."""

from command_line import dsv3sim


def test_a_file_that_is_no_profile_is_one_line(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    done = dsv3sim("replay", "notes.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dsv3sim: notes.json: ")
    assert len(done.stderr.splitlines()) == 1
