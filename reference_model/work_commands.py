"""Commands that train the model, compare its precisions and generate text.

python -m reference_model train | compare-precision | gradient-error | balance | generate
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reference_model.train import Training, TrainingSettings


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of __main__."""
    _add_train(commands)
    _add_compare_precision(commands)
    _add_gradient_error(commands)
    _add_balance(commands)
    _add_generate(commands)


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train, with checkpoints; resume a run")
    _add_training(train, steps=300)
    _add_kernels(train)
    _add_balance_options(train)
    train.add_argument(
        "--precision", default="bf16", help="fp32, bf16 or fp8 (default: %(default)s)"
    )
    train.add_argument("--out", type=Path, help="folder of the run's losses and checkpoint")
    train.add_argument(
        "--checkpoint-every", type=int, default=100, help="steps (default: %(default)s)"
    )
    train.add_argument("--stop-after", type=int, help="stop before this step, as if interrupted")
    train.add_argument(
        "--resume", type=Path, metavar="FOLDER",
        help="go on with the run in this folder; its settings are those of its start",
    )  # fmt: skip
    train.set_defaults(function=_train)


def _add_compare_precision(commands: Any) -> None:
    compare = commands.add_parser(
        "compare-precision", help="FP8 against BF16, beside other seeds, FP32 and a lesser recipe"
    )
    _add_training(compare, steps=400)
    _add_balance_options(compare)
    compare.add_argument(
        "--kernels", nargs="+", default=["reference", "per_tensor", "no_promotion"],
        help="backends of the FP8 kernels, an FP8 run each; per_tensor and no_promotion leave out"
        " a part of the recipe (default: reference per_tensor no_promotion)",
    )  # fmt: skip
    compare.add_argument(
        "--seeds", type=int, default=3,
        help="BF16 runs, the first with the weights of the FP8 runs (default: %(default)s)",
    )  # fmt: skip
    compare.add_argument(
        "--processes", type=int, default=1, help="runs at a time (default: %(default)s)"
    )
    compare.add_argument(
        "--window", type=int, help="steps that are averaged (default: a tenth of them)"
    )
    compare.add_argument("--out", type=Path, help="folder for losses.csv and losses.png")
    compare.set_defaults(function=_compare)


def _add_gradient_error(commands: Any) -> None:
    error = commands.add_parser(
        "gradient-error", help="the first gradient in BF16 and FP8 against FP32"
    )
    _add_training(error, steps=1)
    _add_kernels(error)
    _add_balance_options(error)
    error.set_defaults(function=_gradient_error)


def _add_balance(commands: Any) -> None:
    balance = commands.add_parser(
        "balance", help="expert load with bias steps, without, and with an auxiliary loss"
    )
    _add_training(balance, steps=300)
    _add_kernels(balance)
    balance.add_argument(
        "--gamma", type=float, default=0.005,
        help="step of the biases; published: 0.001, over far more steps (default: %(default)s)",
    )  # fmt: skip
    balance.add_argument(
        "--balance-alpha", type=float, default=0.01,
        help="weight of the auxiliary loss (default: %(default)s)",
    )  # fmt: skip
    balance.add_argument("--precision", default="bf16", help="default: %(default)s")
    balance.add_argument("--out", type=Path, help="folder for load histograms and violations")
    balance.set_defaults(function=_balance)


def _add_generate(commands: Any) -> None:
    generate = commands.add_parser(
        "generate", help="greedy decoding, and with the prediction module as a draft"
    )
    generate.add_argument(
        "--run", type=Path, required=True, help="folder of a training run with its checkpoint"
    )
    generate.add_argument("--precision", help="default: that of the training run")
    generate.add_argument("--sequences", type=int, default=8, help="default: %(default)s")
    generate.add_argument(
        "--prompt-tokens", type=int, default=16, help="held-out tokens (default: %(default)s)"
    )
    generate.add_argument("--new-tokens", type=int, default=128, help="default: %(default)s")
    generate.add_argument("--device", help="default: that of the training run")
    generate.set_defaults(function=_generate)


def _add_training(parser: argparse.ArgumentParser, *, steps: int) -> None:
    shown = "(default: %(default)s)"
    parser.add_argument("--config", default="debug", help=f"shipped config or config.json {shown}")
    parser.add_argument("--device", default="cpu", help=f"torch device {shown}")
    parser.add_argument("--steps", type=int, default=steps, help=shown)
    parser.add_argument("--batch", type=int, default=4, help=f"sequences of a batch {shown}")
    parser.add_argument(
        "--first-batch", type=int, help="sequences of the first batches, which grow from there on"
    )
    parser.add_argument("--context", type=int, default=64, help=f"tokens of a sequence {shown}")
    parser.add_argument(
        "--learning-rate", type=float, default=3e-3,
        help=f"after warm-up; published for 671 B parameters: 2.2e-4 {shown}",
    )  # fmt: skip
    parser.add_argument("--warmup", type=int, default=20, help=f"steps {shown}")
    parser.add_argument(
        "--schedule", default="report", help=f"of the learning rate: report or constant {shown}"
    )
    parser.add_argument("--seed", type=int, default=0, help=f"of the weights {shown}")
    parser.add_argument(
        "--initial-deviation", type=float, default=0.0,
        help=f"of the first weights, 0: variance 1 / fan-in; published: 0.006 {shown}",
    )  # fmt: skip
    parser.add_argument("--data", default="markov", help=f"markov or stdlib {shown}")
    parser.add_argument("--symbols", type=int, default=32, help=f"of the Markov chain {shown}")
    parser.add_argument(
        "--concentration", type=float, default=0.1,
        help=f"of the Markov chain's rows: small ones are nearly certain {shown}",
    )  # fmt: skip
    parser.add_argument("--data-seed", type=int, default=0, help=f"of the data {shown}")
    parser.add_argument(
        "--held-out-batches", type=int, default=16, help=f"to evaluate on at the end {shown}"
    )


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels", help="backend; default: mixed on CUDA, reference (plain torch) elsewhere"
    )
    parser.add_argument(
        "--eager", action="store_true",
        help="launch every kernel by itself, where a step would be captured in a CUDA graph",
    )  # fmt: skip
    parser.add_argument(
        "--deterministic", action="store_true",
        help="the same bits in every run, on CUDA too, where attention's backward takes longer",
    )  # fmt: skip


def _add_balance_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gamma", type=float, default=0.001,
        help="step of the balancing biases (default: %(default)s, as published)",
    )  # fmt: skip
    parser.add_argument(
        "--balance-alpha", type=float, default=0.0,
        help="weight of the auxiliary balance loss; published: 0.0001 (default: %(default)s)",
    )  # fmt: skip


def _settings(
    options: argparse.Namespace, *, precision: str, kernels: str | None
) -> TrainingSettings:
    from reference_model.train import TrainingSettings

    if options.held_out_batches < 1:
        raise ValueError(f"--held-out-batches {options.held_out_batches} must be at least 1")
    return TrainingSettings(
        config=options.config,
        precision=precision,
        kernels=kernels,
        device=options.device,
        steps=options.steps,
        sequences=options.batch,
        first_sequences=options.first_batch or options.batch,
        context=options.context,
        peak_learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        schedule=options.schedule,
        gamma=options.gamma,
        balance_alpha=options.balance_alpha,
        seed=options.seed,
        initial_deviation=options.initial_deviation,
        data=options.data,
        symbols=options.symbols,
        concentration=options.concentration,
        data_seed=options.data_seed,
        eager=getattr(options, "eager", False),
        deterministic=getattr(options, "deterministic", False),
    )


# -- train -----------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> None:
    from reference_model.train import Progress, StepRecord, Training, resume

    if options.checkpoint_every < 1:
        raise ValueError(f"--checkpoint-every {options.checkpoint_every} must be at least 1")
    folder: Path | None = options.resume or options.out
    if options.resume:
        training = resume(options.resume)
    else:
        training = Training(
            _settings(options, precision=options.precision, kernels=options.kernels)
        )
    _print_header(training)
    done = len(training.history)
    if done:
        print(f"resumed    at step {done}")
    last = options.stop_after or training.settings.steps
    progress = Progress(training, every=max(1, training.settings.steps // 10), show=_print)

    def on_step(record: StepRecord) -> None:
        progress(record)
        if folder is not None and (record.step + 1) % options.checkpoint_every == 0:
            training.save(folder)

    training.run(until=last, on_step=on_step)
    if folder is not None:
        training.save(folder)
        print(f"written    {folder}")
    if len(training.history) < training.settings.steps:
        print(f"stopped    after step {len(training.history)}, loss {_last_loss(training)}")
        return
    main, mtp, _ = training.evaluate(batches=options.held_out_batches)
    print(f"last step  loss {_last_loss(training)}")
    print(f"held out   loss {main:.4f} (next token), {mtp:.4f} (the one after)")


def _print_header(
    training: Training, *, precisions: str | None = None, kernels: str | None = None
) -> None:
    """What is trained on what; several precisions and kernels where several runs are."""
    s = training.settings
    floor = training.source.entropy
    print(
        f"model      {s.config}, {precisions or s.precision}"
        f" ({kernels or training.model.recipe.kernels} kernels) on {s.device}"
    )
    print(f"data       {training.source.description}")
    if floor is not None:
        print(f"floor      {floor:.4f}: no model's loss is lower on average")
    print(f"batch      {s.first_sequences} to {s.sequences} sequences of {s.context} tokens")


def _last_loss(training: Training) -> str:
    return f"{training.history[-1].main:.9f}"


def _print(line: str) -> None:
    print(line, flush=True)


# -- compare-precision -----------------------------------------------------------------------------


def _compare(options: argparse.Namespace) -> None:
    from reference_model.precision_comparison import (
        PUBLISHED_BOUND,
        TrainedRun,
        compare_precisions,
        plot_comparison,
        product_errors,
        relative_errors,
        write_comparison,
    )
    from reference_model.train import Training

    settings = _settings(options, precision="bf16", kernels=options.kernels[0])
    window = max(1, settings.steps // 10) if options.window is None else options.window
    training = Training(settings)
    _print_header(training, precisions="bf16, fp32, fp8", kernels=", ".join(options.kernels))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)

    def on_trained(name: str, run: TrainedRun) -> None:
        _print(f"trained    {name}, {settings.steps} steps, last loss {run.losses[-1]:.4f}")

    runs = compare_precisions(
        settings,
        seeds=options.seeds,
        kernels=options.kernels,
        held_out_batches=options.held_out_batches,
        processes=options.processes,
        on_trained=on_trained,
    )
    print()
    print(f"relative error of the loss (mean of {window} steps) over the last half of the steps,")
    first = next(iter(runs))
    print(f"against {first}; published bound: {PUBLISHED_BOUND:.2%}")
    print(f"{'run':<18}{'mean |error|':>14}{'largest':>10}{'mean error':>12}{'held-out loss':>15}")
    for name, run in runs.items():
        # Noise of both signs cancels in the mean error, and not in that of the magnitudes.
        differences = relative_errors(run.losses, runs[first].losses, window=window)
        print(
            f"{name:<18}{abs(differences).mean():>14.3%}{abs(differences).max():>10.3%}"
            f"{differences.mean():>+12.3%}{run.held_out:>15.4f}"
        )
    print()
    print("relative error of one matrix product [64, k] x [k, 64] of random operands")
    print(f"{'k':>7}{'outlier row':>13}", *(f"{name:>18}" for name in _variants()))
    errors = product_errors(
        lengths=(128, 1024, 4096, 16384), outliers=(1e3, 1e4, 1e5), seed=options.seed
    )
    for start in range(0, len(errors), len(_variants())):
        row = errors[start : start + len(_variants())]
        outlier = "none" if row[0].outliers == 1 else f"x {row[0].outliers:g}"
        print(f"{row[0].k:>7}{outlier:>13}", *(f"{e.error:>18.3%}" for e in row))
    if options.out is not None:
        write_comparison(runs, options.out / "losses.csv")
        plot_comparison(
            runs, options.out / "losses.png", window=window, floor=training.source.entropy
        )
        print(f"written    {options.out}/losses.csv, losses.png")


def _variants() -> list[str]:
    from reference_model.precision_comparison import PRODUCT_VARIANTS

    return list(PRODUCT_VARIANTS)


def _gradient_error(options: argparse.Namespace) -> None:
    from reference_model.precision_comparison import gradient_errors

    settings = _settings(options, precision="fp32", kernels=options.kernels)
    deviation = settings.initial_deviation
    start = f"deviation {deviation:g}" if deviation else "variance 1 / fan-in"
    print(f"first gradient of {settings.config}, weights of {start}, against FP32 (relative norms)")
    print(
        f"{'run':<22}{'all':>8}{'median tensor':>15}{'worst':>8}{'tokens with other experts':>27}"
    )
    for e in gradient_errors(settings):
        changed = "" if math.isnan(e.changed) else f"{e.changed:.1%}"
        print(f"{e.name:<22}{e.error:>8.3f}{e.median:>15.3f}{e.worst:>8.3f}{changed:>27}")


# -- balance ---------------------------------------------------------------------------------------


def _balance(options: argparse.Namespace) -> None:
    from reference_model.balance import (
        group_imbalance,
        group_sizes,
        write_expert_load,
        write_group_imbalance,
    )
    from reference_model.train import LOSSES, Training

    settings = _settings(options, precision=options.precision, kernels=options.kernels)
    runs = {
        "bias": replace(settings, balance_alpha=0.0),
        "none": replace(settings, gamma=0.0, balance_alpha=0.0),
        "loss": replace(settings, gamma=0.0),
    }
    titles = {
        "bias": f"bias steps of {settings.gamma:g}",
        "none": "no balancing",
        "loss": f"auxiliary loss x {settings.balance_alpha:g}",
    }
    fifth = max(1, settings.steps // 5)
    _print_header(Training(settings))
    print()
    print(
        "maximum violation, (largest - mean) / mean load of an expert, mean over layers, by fifths"
    )
    print("of the run; losses on held-out data; largest over mean load of ranks, worst layer")
    columns = "".join(f"{f'{(i + 1) * 20} %':>7}" for i in range(5))
    print(f"{'':<24}{columns}{'held out':>10}{'loss':>9}{'of ranks':>16}")
    for name, run in runs.items():
        training = Training(run)
        training.run()
        loss, _, load = training.evaluate(batches=options.held_out_batches)
        config = training.config
        violations = [
            sum(r.max_violation for r in training.history[i : i + fifth]) / fifth
            for i in range(0, 5 * fifth, fifth)
        ]
        main = load[: config.num_moe_layers]
        held_out = float(group_imbalance(main, ranks=config.n_routed_experts).mean()) - 1
        ranks = [
            f"{count}: {float(group_imbalance(main, ranks=count).max()):.2f}"
            for count in group_sizes(config.n_routed_experts)
        ]
        cells = "".join(f"{value:>7.2f}" for value in violations)
        _print(f"{titles[name]:<24}{cells}{held_out:>10.2f}{loss:>9.4f}  {', '.join(ranks)}")
        if options.out is not None:
            folder = options.out / name
            training.save(folder)
            write_expert_load(load, config, folder / "expert_load.csv")
            write_group_imbalance(load, config, folder / "group_imbalance.csv")
    if options.out is not None:
        print(f"written    {options.out}/{{{','.join(runs)}}}/: {LOSSES}, expert_load.csv,")
        print("           group_imbalance.csv; expert_load.csv is what a serving job of the")
        print("           simulator takes as `skew: {rows: {file: ...}}`")


# -- generate --------------------------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> None:
    from reference_model.config import load_model_config
    from reference_model.generate import (
        draft_cost,
        expected_speedup,
        first_difference,
        generate,
        generate_with_draft,
    )
    from reference_model.train import resume

    for name in ("sequences", "prompt_tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    training = resume(options.run, precision=options.precision, device=options.device)
    prompts = training.source.held_out(
        0, sequences=options.sequences, length=options.prompt_tokens
    ).to(training.model.device)
    _print_header(training)
    print(f"trained    {len(training.history)} steps, last loss {_last_loss(training)}")
    plain = generate(training.model, prompts, new_tokens=options.new_tokens)
    drafted = generate_with_draft(training.model, prompts, new_tokens=options.new_tokens)
    count = plain.tokens.numel()
    difference = first_difference(plain.tokens, drafted.tokens)
    print(f"generated  {options.sequences} x {options.new_tokens} tokens, greedy")
    if training.settings.data == "stdlib":
        text = bytes(plain.tokens[0].tolist()).decode(errors="replace")
        print(f"text       {text!r}")
    else:
        print(f"tokens     {' '.join(map(str, plain.tokens[0, :24].tolist()))} ...")
    if difference is None:
        print(f"exact      all {count} tokens of decoding with a draft equal those without")
    else:
        sequence, position = difference
        print(f"NOT EXACT  sequence {sequence} differs from token {position} on")
    cost = draft_cost(training.config)
    print(f"steps      {plain.steps} without a draft, {drafted.steps} with one")
    print(
        f"accepted   {drafted.acceptance:.1%} of drafts: {drafted.tokens_per_step:.3f} tokens a"
        " step and sequence"
    )
    print(
        f"speed-up   {expected_speedup(drafted.acceptance, cost):.2f} expected at this acceptance,"
        f" drafting being {cost:.1%} of a step of this model"
    )
    print(f"           {plain.seconds / drafted.seconds:.2f} in wall time of this device")
    v3 = draft_cost(load_model_config("deepseek_v3"))
    low, high = (expected_speedup(acceptance, v3) for acceptance in (0.85, 0.9))
    print(
        f"           {low:.2f} to {high:.2f} for DeepSeek-V3 at its own, published acceptance of 85"
        " to 90% (published: 1.8)"
    )
