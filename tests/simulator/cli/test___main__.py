"""The command line as a module."""

import runpy
import sys

import pytest


def test_the_module_is_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dsv3sim", "run", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("simulator.cli", run_name="__main__")
    assert end.value.code == 0
    assert "--json" in capsys.readouterr().out
