"""Commands that run the model on several ranks.

python -m reference_model expert-parallel | node-limited | pipeline | pair | host
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reference_model.pair_order import Part


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of __main__."""
    _add_expert_parallel(commands)
    _add_node_limited(commands)
    _add_pipeline(commands)
    _add_pair(commands)
    _add_host(commands)


def _add_expert_parallel(commands: Any) -> None:
    parallel = commands.add_parser(
        "expert-parallel", help="a step with experts spread over ranks, against one rank"
    )
    _add_step(parallel, recipe="float32")
    parallel.add_argument("--ranks", type=int, default=2, help="default: %(default)s")
    parallel.add_argument(
        "--backend", default="gloo", help="gloo (CPU) or nccl (GPUs) (default: %(default)s)"
    )
    parallel.add_argument(
        "--one-rank-a-token", action="store_true",
        help="let each token choose experts of one rank only, so that nothing is rounded between"
        " ranks",
    )  # fmt: skip
    parallel.set_defaults(function=_expert_parallel)


def _add_node_limited(commands: Any) -> None:
    routing = commands.add_parser(
        "node-limited", help="nodes and GPUs that tokens reach through a model's gate"
    )
    routing.add_argument("--config", default="deepseek_v3", help="default: %(default)s")
    routing.add_argument("--nodes", type=int, default=8, help="default: %(default)s")
    routing.add_argument("--gpus", type=int, default=64, help="of all nodes (default: %(default)s)")
    routing.add_argument("--tokens", type=int, default=100_000, help="default: %(default)s")
    routing.add_argument("--seed", type=int, default=0, help="of the logits")
    routing.set_defaults(function=_node_limited)


def _add_pipeline(commands: Any) -> None:
    pipeline = commands.add_parser(
        "pipeline", help="a step in the order of a schedule by real ranks, against a serial one"
    )
    _add_step(pipeline, recipe="float32")
    pipeline.add_argument(
        "--schedule", type=Path, required=True,
        help="file with one line a rank, as `dsv3sim show schedule` prints them",
    )  # fmt: skip
    pipeline.add_argument(
        "--backend", default="gloo", help="gloo (CPU) or nccl (GPUs) (default: %(default)s)"
    )
    pipeline.set_defaults(function=_pipeline)


def _add_pair(commands: Any) -> None:
    pair = commands.add_parser(
        "pair", help="an overlapped pair on several ranks, against its micro-batches one by one"
    )
    _add_step(pair, recipe="fp8")
    pair.add_argument(
        "--order", type=Path, required=True,
        help="file with one part a line, as `dsv3sim show pair SCENARIO --order FILE` writes it",
    )  # fmt: skip
    pair.add_argument("--ranks", type=int, default=2, help="default: %(default)s")
    pair.add_argument(
        "--backend", default="gloo", help="gloo (CPU) or nccl (GPUs) (default: %(default)s)"
    )
    pair.add_argument(
        "--communication-sms", type=int, nargs="+", default=[], metavar="N",
        help="SMs of the kernels that move tokens between GPUs (default: those of NCCL)",
    )  # fmt: skip
    pair.add_argument(
        "--out", type=Path, help="measure pairs, for every N, and write the table to go on with"
    )
    pair.add_argument(
        "--seconds", type=float, default=2.0, help="each is replayed (default: %(default)s)"
    )
    pair.set_defaults(function=_pair)


def _add_host(commands: Any) -> None:
    host = commands.add_parser(
        "host", help="how alike the GPUs of a host are, what they wait for, their collectives"
    )
    host.add_argument("--out", type=Path, required=True, help="folder of tables, to go on with")
    host.add_argument(
        "--config",
        help="default: deepseek_v3 of three layers, two with 32 routed experts, and of the part"
        " pair one with 16",
    )
    host.add_argument("--parts", nargs="+", metavar="PART", help="only these")
    host.add_argument("--order", type=Path, help="of the part pair; see the command pair")
    host.add_argument(
        "--communication-sms", type=int, nargs="+", default=[2, 8, 20], metavar="N",
        help="of the part pair; the most of them in the other steps (default: 2 8 20)",
    )  # fmt: skip
    host.add_argument("--ranks", type=int, help="processes (default: one for each GPU)")
    host.add_argument("--backend", default="nccl", help="nccl or gloo (default: %(default)s)")
    for name, default, text in (
        ("tokens", 4096, "of a training micro-batch, and of the loop's kernels"),
        ("sequences", 128, "of a decode step, on each GPU"),
        ("context", 4096, "that each of them has cached"),
        ("repeats", 40, "of each step"),
        ("smallest", 2**16, "bytes of a collective"),
        ("largest", 2**30, "bytes of a collective"),
    ):
        host.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")
    for name, seconds, text in (
        ("together", 60.0, "seconds of the loop on all GPUs"),
        ("alone", 15.0, "seconds of the loop on each GPU"),
        ("stretch", 7.5, "seconds of the loop that one row covers"),
        ("skew", 1.0, "of the uneven routing: experts' popularity falls by exp(-skew)"),
        ("deadline", float("inf"), "seconds after which no part begins"),
    ):
        host.add_argument(f"--{name}", type=float, default=seconds, help=f"{text} (%(default)s)")
    host.set_defaults(function=_host)


def _add_step(parser: argparse.ArgumentParser, *, recipe: str) -> None:
    parser.add_argument("--config", default="debug", help="default: %(default)s")
    parser.add_argument("--recipe", default=recipe, help="default: %(default)s")
    parser.add_argument(
        "--kernels", help="default: mixed on CUDA, reference (plain torch) elsewhere"
    )
    parser.add_argument("--sequences", type=int, default=2, help="of a rank or micro-batch")
    parser.add_argument("--context", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds (default: %(default)s)"
    )


def _expert_parallel(options: argparse.Namespace) -> None:
    from reference_model.config import load_model_config
    from reference_model.expert_parallel import check_expert_parallel
    from reference_model.gpu import default_kernels
    from reference_model.precision import Recipe
    from reference_model.ranks import rank_device

    _check_step(options)
    device = rank_device(options.backend)
    config = load_model_config(options.config)
    if options.one_rank_a_token:
        config = replace(config, n_group=options.ranks, topk_group=1)
    result = check_expert_parallel(
        config,
        recipe=Recipe(options.recipe, options.kernels or default_kernels(device)),
        ranks=options.ranks,
        sequences=options.sequences,
        context=options.context,
        seed=options.seed,
        backend=options.backend,
        timeout_s=options.timeout,
    )
    mean = sum(result.losses) / len(result.losses)
    print(f"ranks      {options.ranks} over {options.backend}, {options.recipe}")
    print(f"loss       {mean:.7f} over the ranks, {result.single_loss:.7f} on one")
    print(f"gradients  differ by at most {result.largest_gradient_error:.1e} (relative, by weight)")
    print()
    peers = "".join(f"{f'to rank {rank}':>12}" for rank in range(options.ranks))
    print(f"bytes of the first layer   {'type':<12}{'from':<8}{peers}")
    kinds = (("forward", "dispatch"), ("forward", "combine"))
    backward = (("input_grad", "dispatch"), ("input_grad", "combine"))
    for phase, kind in (*kinds, *backward):
        for rank, traffic in enumerate(result.traffic):
            matching = [t for t in traffic if (t.phase, t.kind) == (phase, kind)]
            item = matching[0] if phase == "forward" else matching[-1]
            cells = "".join(f"{count:>12,}" for count in item.bytes_to)
            name = f"{kind}, {'forward' if phase == 'forward' else 'backward'}"
            print(f"{name:<27}{item.dtype:<12}rank {rank}  {cells}")


def _node_limited(options: argparse.Namespace) -> None:
    import torch

    from reference_model.config import load_model_config
    from reference_model.node_limited import (
        choose_on_random_logits,
        choose_within_random_groups,
        copies_received,
        destinations_reached,
        groups_reached_at_random,
    )

    if options.tokens < 1:
        raise ValueError(f"--tokens {options.tokens} must be at least 1")
    config = load_model_config(options.config)
    generator = torch.Generator().manual_seed(options.seed)
    experts = config.n_routed_experts
    print(
        f"gate       {options.config}: {config.num_experts_per_tok} of {experts} experts, in"
        f" {config.topk_group} of {config.n_group} groups"
    )
    chosen = choose_on_random_logits(config, tokens=options.tokens, generator=generator)
    for name, count in (("nodes", options.nodes), ("GPUs", options.gpus)):
        reached = destinations_reached(chosen, experts=experts, destinations=count)
        print(
            f"{name:<11}{float(reached.double().mean()):.3f} of {count} a token on random logits,"
            f" at most {int(reached.max())}"
        )
    copies = copies_received(chosen, experts=experts, destinations=options.nodes)
    print(
        f"copies     {int(copies.sum()):,} of {options.tokens:,} tokens to nodes, between"
        f" {int(copies.min()):,} and {int(copies.max()):,} to one"
    )
    random = choose_within_random_groups(config, tokens=options.tokens, generator=generator)
    counted = destinations_reached(random, experts=experts, destinations=config.n_group)
    print(
        f"counting   {float(counted.double().mean()):.3f} groups a token within random groups,"
        f" closed form {groups_reached_at_random(config):.3f}"
    )


def _pipeline(options: argparse.Namespace) -> None:
    from reference_model.config import load_model_config
    from reference_model.gpu import default_kernels
    from reference_model.pipeline import check_pipeline, parse_order
    from reference_model.precision import Recipe
    from reference_model.ranks import rank_device

    _check_step(options)
    try:
        text = options.schedule.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{options.schedule}: cannot be read: {error.strerror}") from error
    order = parse_order(text, source=str(options.schedule))
    result = check_pipeline(
        order,
        load_model_config(options.config),
        recipe=Recipe(
            options.recipe, options.kernels or default_kernels(rank_device(options.backend))
        ),
        sequences=options.sequences,
        context=options.context,
        seed=options.seed,
        backend=options.backend,
        timeout_s=options.timeout,
    )
    actions = [action for rank in order.ranks for action in rank]
    pairs = sum(len(action.chunks) > 1 for action in actions)
    print(
        f"order      {len(order.ranks)} ranks, {order.stages} stages, {order.microbatches}"
        f" micro-batches, {len(actions)} actions, {pairs} of them pairs"
    )
    print("           (here the two chunks of a pair run one after the other, not overlapped)")
    worst = max(
        abs(one / other - 1) for one, other in zip(result.losses, result.serial_losses, strict=True)
    )
    print(f"losses     of {len(result.losses)} micro-batches differ from serial by {worst:.1e}")
    print(
        f"gradients  of {result.weights} weights differ from serial by at most"
        f" {result.largest_gradient_error:.1e} (relative, by weight)"
    )
    print(
        f"held       at most {', '.join(map(str, result.most_held))} chunks of activations a rank"
    )
    print(f"time       {result.seconds:.1f} s, start of the processes included")


def _pair(options: argparse.Namespace) -> None:
    from reference_model.config import load_model_config
    from reference_model.gpu import default_kernels
    from reference_model.measure_pair import measure_pair
    from reference_model.pair import check_pair
    from reference_model.precision import Recipe
    from reference_model.ranks import rank_device

    _check_step(options)
    order = _read_pair_order(options)
    config = load_model_config(options.config)
    if options.out is not None:
        measure_pair(
            config,
            order,
            model=options.config,
            sizes=[(options.sequences, options.context)],
            programs=tuple(options.communication_sms) or (1,),
            seconds=options.seconds,
            ranks=options.ranks,
            backend=options.backend,
            out=options.out,
            timeout_s=options.timeout,
        )
        return
    kernels = options.kernels or default_kernels(rank_device(options.backend))
    for programs in options.communication_sms or (None,):
        gradients, output, input_grad = check_pair(
            order,
            config,
            recipe=Recipe(options.recipe, kernels),
            ranks=options.ranks,
            sequences=options.sequences,
            context=options.context,
            seed=options.seed,
            backend=options.backend,
            programs=programs,
            timeout_s=options.timeout,
        )
        moved = options.backend if programs is None else f"kernels on {programs} SMs"
        print(f"pair       {options.ranks} ranks, {options.recipe}, tokens moved by {moved}")
        print(f"gradients  differ by at most {gradients:.1e} (relative)")
        print(f"output     by {output:.1e}, input gradient {input_grad:.1e}")


def _read_pair_order(options: argparse.Namespace) -> tuple[Part, ...]:
    """The order of --order, and a look at the SMs that go with it."""
    from reference_model.pair_order import parse_pair_order

    for count in options.communication_sms:
        if count < 1:
            raise ValueError(f"--communication-sms {count} must be at least 1")
    try:
        text = options.order.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{options.order}: cannot be read: {error.strerror}") from error
    return parse_pair_order(text, source=str(options.order))


def _host(options: argparse.Namespace) -> None:
    from reference_model.config import load_model_config
    from reference_model.host import Measure, measure_collectives, measure_host, sizes_between
    from reference_model.measure_alike import measure_alike
    from reference_model.measure_arrivals import DECODE, TRAIN, Job, measure_arrivals
    from reference_model.measure_pair import measure_pair
    from reference_model.whole_runs import MANY_EXPERTS, OVERLAPPED_PAIR

    for name in ("tokens", "sequences", "context", "repeats", "smallest"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
    for name in ("together", "alone", "stretch"):
        if getattr(options, name) <= 0:
            raise ValueError(f"--{name} {getattr(options, name)} must be above 0")
    name = options.config or MANY_EXPERTS
    config, model = load_model_config(name), Path(name).stem
    jobs = [
        Job(name, sequences, context, skew)
        for name, sequences, context in (
            (TRAIN, 1, options.tokens),
            (DECODE, options.sequences, options.context),
        )
        for skew in (0.0, options.skew)
    ]
    order = None if options.order is None else _read_pair_order(options)

    def alike(ranks: int, table: Path, _: float) -> None:
        measure_alike(
            config,
            tokens=options.tokens,
            ranks=ranks,
            backend=options.backend,
            out=table,
            together_s=options.together,
            alone_s=options.alone,
            stretch_s=options.stretch,
        )

    def collectives(ranks: int, table: Path, left_s: float) -> None:
        sizes = sizes_between(options.smallest, options.largest)
        measure_collectives(sizes, ranks=ranks, backend=options.backend, out=table, left_s=left_s)

    def expert_parallel(ranks: int, table: Path, left_s: float) -> None:
        measure_arrivals(
            config,
            list(dict.fromkeys(jobs)),
            model=model,
            ranks=ranks,
            backend=options.backend,
            repeats=options.repeats,
            programs=max(options.communication_sms),
            out=table,
            timeout_s=min(left_s, 600.0),
        )

    def pair(ranks: int, table: Path, left_s: float) -> None:
        assert order is not None
        paired = options.config or OVERLAPPED_PAIR
        measure_pair(
            load_model_config(paired),
            order,
            model=paired,
            sizes=[(4, max(options.tokens // 4, 1))],
            programs=tuple(options.communication_sms),
            seconds=2.0,
            ranks=ranks,
            backend=options.backend,
            out=table,
            timeout_s=min(left_s, 600.0),
        )

    every: dict[str, Measure] = {
        "alike": alike,
        "collectives": collectives,
        "expert_parallel": expert_parallel,
        "pair": pair,
    }
    parts = options.parts or [part for part in every if part != "pair" or order is not None]
    for part in parts:
        if part not in every:
            raise ValueError(f"--parts {part!r} is not one of {', '.join(every)}")
        if part == "pair" and order is None:
            raise ValueError("--parts pair: needs --order, the order of the pair")
    measure_host(
        {part: every[part] for part in parts},
        ranks=options.ranks,
        out=options.out,
        deadline_s=options.deadline,
    )


def _check_step(options: argparse.Namespace) -> None:
    for name in ("sequences", "context"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.timeout <= 0:
        raise ValueError(f"--timeout {options.timeout} must be above 0")
