"""Plausible mistakes, each answered by one line that has the way out in it.

mistakes.txt holds the commands, each followed by its line. `python tests/test_mistakes.py` writes
the lines of today behind the commands; read what it changed.
"""

import shlex
import sys
from pathlib import Path

import pytest

from simulator.cli.app import BAD_INPUT, main

TABLE = Path(__file__).with_name("mistakes.txt")
MARK = "$ dsv3sim "
ENTRIES = [
    (*entry.strip().splitlines(), "")[:2] for entry in TABLE.read_text("utf-8").split(MARK)[1:]
]
FILES = {
    "few.yaml": "description: d\noffload: {}\n",
    "typo.yaml": "description: d\ncluster: h800_2048\ncalibation: h800_sxm\noffload: {}\n",
    "tab.yaml": "description: d\n\toffload: {}\n",
    "two.yaml": "description: d\noffload: {}\ntpot_limit: {}\n",
    "none.yaml": "description: d\nmodel: deepseek_v3\n",
    "small.yaml": "name: small\nnodes: 2\nnode: {gpu: h100_sxm, gpus: 8}\n",
}


def said(command, folder, monkeypatch, capsys):
    """What a command says, in a folder with the files of this test."""
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["dsv3sim", *shlex.split(command)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


@pytest.mark.parametrize(("command", "line"), ENTRIES, ids=[command for command, _ in ENTRIES])
def test_a_mistake_is_answered_by_one_line_and_leaves_nothing(
    command, line, tmp_path, monkeypatch, capsys
):
    code, shown = said(command, tmp_path, monkeypatch, capsys)
    assert (code, shown.out, shown.err) == (BAD_INPUT, "", f"{line}\n")
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_at_least_sixty_mistakes_are_tried():
    assert len({command for command, _ in ENTRIES}) >= 60


def rewrite():
    """Run every command of the table and write what it says behind it."""
    import contextlib
    import io
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, text in FILES.items():
            Path(name).write_text(text, encoding="utf-8")
        entries = []
        for line in TABLE.read_text("utf-8").splitlines():
            if line.startswith(MARK):
                command = line.removeprefix(MARK)
                sys.argv = ["dsv3sim", *shlex.split(command)]
                with contextlib.redirect_stderr(io.StringIO()) as stderr:
                    try:
                        main()
                    except SystemExit:
                        entries.append(f"{line}\n{stderr.getvalue().strip()}\n")
        TABLE.write_text("\n".join(entries), encoding="utf-8")


if __name__ == "__main__":
    rewrite()
