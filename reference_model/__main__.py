"""The reference model on the command line: `python -m reference_model --help` names its commands.

run and trace are here; what times kernels is in gpu_commands.py, training and decoding in
work_commands.py, several ranks in parallel_commands.py."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from reference_model import gpu_commands, parallel_commands, work_commands
from reference_model.config import load_model_config, shipped_configs
from reference_model.parameter_counts import parameter_counts
from reference_model.trace import (
    JOBS,
    LAYER_KINDS,
    RECOMPUTATIONS,
    Split,
    save_trace,
    trace_name,
    user_trace_folder,
)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, return the exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m reference_model",
        description="DeepSeek-V3 as a runnable PyTorch model: record it, time it, train it, decode"
        " with it, spread it over ranks.",
        epilog="COMMAND --help names the options of a command.",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )

    run = commands.add_parser("run", help="forward, loss and backward of one random micro-batch")
    _add_model(run, default="debug")
    run.add_argument("--sequences", type=int, default=2, help="sequences of the micro-batch")
    run.add_argument("--context", type=int, default=64, help="tokens of each sequence")
    run.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    run.add_argument("--device", default="cpu", help="torch device")
    run.set_defaults(function=_run)

    trace = commands.add_parser("trace", help="record a model's operators on the meta device")
    _add_model(trace, default="deepseek_v3")
    trace.add_argument(
        "--jobs", nargs="+", choices=JOBS, default=JOBS, help="what to record (default: all)"
    )
    trace.add_argument(
        "--recompute", choices=RECOMPUTATIONS, default=RECOMPUTATIONS[0],
        help="what a training backward computes again (default: %(default)s)",
    )  # fmt: skip
    trace.add_argument(
        "--out", type=Path, help="folder to write to; default: where the simulator looks for them"
    )
    for axis, shared in (("tensor", "layers"), ("expert-tensor", "routed experts")):
        trace.add_argument(
            f"--{axis}-parallel", type=int, default=1, metavar="GPUS",
            help=f"GPUs that share {shared} in training (default: 1)",
        )  # fmt: skip
    trace.set_defaults(function=_trace)

    gpu_commands.add_commands(commands)
    work_commands.add_commands(commands)
    parallel_commands.add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        options.function(options)
    except (ValueError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(
            f"error: {options.command} takes torch, which is not installed: in a checkout,"
            " pip install '.[reference]'",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as error:
        # Of torch, which not every command imports.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"error: out of memory with {_sizes(options)}", file=sys.stderr)
        return 2
    return 0


def _sizes(options: argparse.Namespace) -> str:
    """The options that say how much memory a command takes: ``config debug, context 64``."""
    names = ("config", "layer", "batch", "sequences", "context", "recipe", "precision", "device")
    return ", ".join(f"{name} {vars(options)[name]}" for name in names if name in vars(options))


def _add_model(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument(
        "--config",
        default=default,
        help=f"a config.json, or one of {', '.join(shipped_configs())} (default: %(default)s)",
    )
    parser.add_argument(
        "--recipe", default="fp8", help="float32, bfloat16 or fp8 (default: %(default)s)"
    )
    parser.add_argument(
        "--kernels", help="backend; default: mixed on CUDA, reference (plain torch) elsewhere"
    )


def _run(options: argparse.Namespace) -> None:
    import torch

    from reference_model.alignment import check_recipe
    from reference_model.gpu import choose_kernels
    from reference_model.model import Transformer
    from reference_model.precision import Recipe

    for name in ("sequences", "context"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
    config = load_model_config(options.config)
    counts = parameter_counts(config)
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ValueError(f"--device {options.device!r} is not a torch device") from error
    recipe = Recipe(options.recipe, choose_kernels(options.kernels, device))
    for note in check_recipe(config, recipe):
        print(note)
    generator = torch.Generator(device).manual_seed(options.seed)
    model = Transformer(config, recipe=recipe, device=device)
    model.initialize(generator)
    ahead = 1 + config.num_nextn_predict_layers
    shape = (options.sequences, options.context + ahead)
    tokens = torch.randint(config.vocab_size, shape, generator=generator, device=device)

    start = time.perf_counter()
    losses, saved = model.loss(tokens, prediction_weight=0.3)
    model.backward(saved)
    seconds = time.perf_counter() - start
    norm = sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
    print(f"model       {options.config}, recipe {recipe.name} ({recipe.kernels} kernels)")
    print(f"parameters  {counts.total:,} + {counts.mtp:,} for multi-token prediction")
    print(f"activated   {counts.activated:,} a token, without the embedding")
    print(f"tokens      {options.sequences} x {options.context}")
    print(f"loss        {losses.main:.4f} (next token)")
    if losses.mtp is not None:
        print(f"            {losses.mtp:.4f} (the one after), {losses.total:.4f} in all")
    print(f"gradient    norm {norm**0.5:.4f}")
    print(f"time        {seconds:.2f} s for forward, loss and backward")


def _trace(options: argparse.Namespace) -> None:
    from reference_model.gpu import PLAIN
    from reference_model.inference_recorder import record_inference_trace
    from reference_model.precision import Recipe
    from reference_model.recorder import record_trace

    config = load_model_config(options.config)
    recipe = Recipe(options.recipe, options.kernels or PLAIN)
    name = Path(options.config).stem
    split = Split(options.tensor_parallel, options.expert_tensor_parallel)
    of_shapes = config.shape_digest[:16]
    folder = options.out or user_trace_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: {error.strerror}") from None
    for job in options.jobs:
        if job == "train":
            trace = record_trace(
                config, model=name, recipe=recipe, split=split, recompute=options.recompute
            )
        else:
            trace = record_inference_trace(config, job=job, model=name, recipe=recipe)
        out = folder / trace_name(of_shapes, job, recipe.name, trace.split, trace.recompute)
        save_trace(trace, out)
        operators = sum(len(section) for section in trace.templates.values())
        print(f"{job:<8} {operators:4d} operators of {len(LAYER_KINDS)} kinds of layer: {out}")


if __name__ == "__main__":
    sys.exit(main())
