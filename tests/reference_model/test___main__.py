"""The command line runs the model, records traces, and refuses bad input in one line."""

import json
import sys

import pytest
import torch

from reference_model import model
from reference_model.__main__ import main
from reference_model.config import CONFIG_FOLDER
from reference_model.trace import load_trace


@pytest.mark.parametrize("recipe", ["float32", "bfloat16", "fp8"])
def test_run_prints_parameters_and_losses(capsys, recipe):
    assert main(["run", "--config", "debug", "--recipe", recipe, "--context", "16"]) == 0
    out = capsys.readouterr().out
    assert "2,299,032 + 661,384 for multi-token prediction" in out
    assert "(next token)" in out


def test_trace_writes_a_trace(capsys, tmp_path):
    out = tmp_path / "traces"
    arguments = ["trace", "--config", "debug", "--recipe", "bfloat16", "--jobs", "train"]
    assert main([*arguments, "--out", str(out)]) == 0
    (file,) = out.iterdir()
    assert load_trace(file).recipe == "bfloat16"
    assert f"operators of 5 kinds of layer: {file}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config", "gpt"], "model 'gpt' is neither"),
        (["run", "--recipe", "fp4"], "recipe 'fp4' is not one of"),
        (["run", "--kernels", "magic"], "kernels 'magic' is not one of"),
        (["run", "--sequences", "0"], "--sequences 0 must be at least 1"),
        (["run", "--device", "toaster"], "--device 'toaster'"),
        (["trace", "--out", "/dev/null/x"], "--out /dev/null/x: Not a directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def without_memory(monkeypatch):
    """No model fits."""

    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr(model, "Transformer", too_large)


def test_what_does_not_fit_into_memory_is_named_by_its_sizes(capsys, without_memory):
    assert main(["run", "--config", "debug", "--sequences", "7", "--context", "48"]) == 2
    error = capsys.readouterr().err
    expected = "out of memory with config debug, sequences 7, context 48, recipe fp8, device cpu"
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["run"], ["train", "--precision", "fp8", "--steps", "2"]], ids=lambda c: c[0]
)
def test_a_size_that_fp8_kernels_cannot_address_is_named(capsys, tmp_path, command):
    fields = json.loads((CONFIG_FOLDER / "debug.json").read_text(encoding="utf-8"))
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(fields | {"moe_intermediate_size": 40}), encoding="utf-8")
    assert main([*command, "--config", str(odd), "--kernels", "triton"]) == 2
    assert "moe_intermediate_size = 40: FP8 kernels on a GPU take" in capsys.readouterr().err


def test_a_size_whose_last_tile_is_narrow_is_noted(capsys, without_memory):
    assert main(["run", "--config", "debug", "--kernels", "triton"]) == 2
    assert "qk_rope_head_dim = 160: of its tiles of 128 the last has 32" in capsys.readouterr().out


def test_a_command_without_torch_says_in_one_line_how_to_install_it(monkeypatch, capsys):
    # What python does where a module is not installed.
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["run", "--config", "debug"]) == 2
    assert capsys.readouterr().err == (
        "error: run takes torch, which is not installed: in a checkout,"
        " pip install '.[reference]'\n"
    )
