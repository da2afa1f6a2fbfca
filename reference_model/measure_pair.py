"""Measure overlapped pairs on GPUs of one host: alone, beside communication, and what it hides.

Both micro-batches of a pair have the same planned routing, so that rows are known beforehand, no
rank asks another how many come, and the whole pair is one captured graph (see planned_routing.py
for the plan and pair.py for the order). Of every number of tokens and of communication SMs:

    pair             the two streams together
    compute          the same without transfers: what they deliver is there from an earlier run.
                     The casts and counts beside them stay
    communication    the transfers alone, one after another

each replayed for some seconds on all ranks at once, the second half of the replays counted.
Products and other persistent kernels are launched for the SMs that communication leaves in all
three; what is not persistent takes every SM that is free. `exposed_s` of a pair is the time in
which its compute stream has no kernel, less what a stream without transfers has between kernels.

Then they run once more with a note of the time behind every operator, on its own stream, and so do
two streams that do not wait for each other: `compute`, and transfers over and over beside it. Rows
of operators hold their time in the pair; `alone_s` with nothing beside them but their own stream;
and `beside_s` of the two that do not wait, which is no pair but says how much transfers and compute
slow each other. A GPU that waits for its transfers draws less power meanwhile, and clocks higher
for the rest: so where transfers take longer than compute, compute rests behind each pair for as
long as it would wait for them by these times (`rest_of_compute`), and both are timed so. All are
means over the layers and some replays, the note included; the replays
follow each other with no host in between, as those do that tell how long a pair takes. All that is
noted runs in turn, some replays of each in every round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from reference_model.blocks import ResidualStream
from reference_model.captured import RankStep
from reference_model.config import ModelConfig
from reference_model.expert_parallel import ExpertParallelBlock
from reference_model.gpu import choose_kernels
from reference_model.layers import rotary_angles
from reference_model.measure import (
    KernelTiming,
    append_rows,
    device_source,
    known_keys,
    limited_sms,
    pairs_text,
)
from reference_model.measure_arrivals import peer_memory
from reference_model.moments import moment, seconds_between, wait_for_device
from reference_model.pair import (
    build_layers,
    random_rows,
    run_forward,
    run_pair,
    two_streams,
)
from reference_model.pair_order import COMMUNICATION, COMPUTE, Part, layers_of
from reference_model.planned_routing import plan_routing
from reference_model.precision import Recipe
from reference_model.ranks import rank_device, run_ranks
from reference_model.stream_notes import UNHINDERED, Note, Notes, idle_seconds, means

PAIR = "pair"
_SEED = 0
_ROUNDS = 4
"""In each of which all that is noted runs once: GPUs warm up and clock lower meanwhile, and what is
compared should not be told apart by that."""
_NOTED_REPLAYS = 15
"""Of a round."""
_SETTLING_REPLAYS = 15
"""Before those that count, so that clock and power are those of a loop, and the GPU that computes
faster begins as much earlier than the others as it ever will."""
_FEWEST = 6
_LEAST_REST = 0.01
"""Of compute's time: shorter rests move no clock."""


# -- one rank --------------------------------------------------------------------------------------


def _time(step: RankStep, seconds: float) -> tuple[float, float]:
    """Median and relative deviation of the second half of some replays, as many on every rank."""
    device = step.device
    step()
    wait_for_device(device)
    begun = time.perf_counter()
    step()
    wait_for_device(device)
    once = torch.tensor(time.perf_counter() - begun, device=device)
    distributed.all_reduce(once, op=distributed.ReduceOp.MAX)
    count = max(_FEWEST, math.ceil(seconds / float(once)))
    distributed.barrier()
    marks = [moment(device)]
    for _ in range(count):
        step()
        marks.append(moment(device))
    wait_for_device(device)
    spans = [seconds_between(a, b) for a, b in pairwise(marks)][count // 2 :]
    return statistics.median(spans), statistics.pstdev(spans) / statistics.mean(spans)


NotedStep = tuple[list[Note], list[list[int]]]
"""The notes of a step, and their times in each replay that counted."""


def _noted(
    runs: Sequence[Callable[[Notes], Any]], device: torch.device, *, rounds: int = _ROUNDS
) -> list[NotedStep]:
    """Each of some runs, captured and then replayed in turn with the others."""
    on_gpu = device.type == "cuda"
    steps = []
    for run in runs:
        notes = Notes(device)

        def once(run: Callable[[Notes], Any] = run, notes: Notes = notes) -> Any:
            notes.notes = []
            return run(notes)

        steps.append((notes, RankStep(once, device)))
    settling = _SETTLING_REPLAYS * on_gpu
    taken: list[list[Tensor]] = [[] for _ in runs]
    for _ in range(rounds if on_gpu else 1):
        for (notes, step), found in zip(steps, taken, strict=True):
            distributed.barrier()
            for replay in range(settling + _NOTED_REPLAYS):
                step()
                if replay >= settling:
                    found.append(notes.times[: len(notes.notes)].clone())
            wait_for_device(device)
    return [
        (notes.notes, [times.tolist() for times in found])
        for (notes, _), found in zip(steps, taken, strict=True)
    ]


def _measure(
    rank: int, ranks: int, config: ModelConfig, order: tuple[Part, ...], model: str,
    sizes: tuple[tuple[int, int], ...], programs: tuple[int, ...], seconds: float, backend: str,
) -> list[tuple[Any, ...]]:  # fmt: skip
    """All runs of one process, as the fields of their rows."""
    device = rank_device(backend)
    recipe = Recipe("fp8", choose_kernels(None, device))
    layers = build_layers(
        config, layers_of(order), recipe=recipe, device=device, rank=rank, ranks=ranks, seed=_SEED
    )
    memory = peer_memory(
        config, layers=len(layers), tokens=max(map(math.prod, sizes)),
        ranks=ranks, programs=max(programs), device=device,
    )  # fmt: skip
    sms = 1
    if device.type == "cuda":
        sms = torch.cuda.get_device_properties(device).multi_processor_count
    common = {
        "model": model, "layers": len(layers), "ranks": ranks, "rank": rank,
        "set": f"dsv3sim_{recipe.kernels}", "launch": "graph" if backend == "nccl" else "eager",
    }  # fmt: skip
    place = {"sms": sms, "source": device_source(device), "common": common}
    rows: list[KernelTiming] = []
    with torch.no_grad():
        for sequences, context in sizes:
            tokens = sequences * context
            plan_routing(layers, tokens=tokens, skew=0.0, rank=rank, ranks=ranks)
            if memory is not None:
                memory.programs = max(programs)
                memory.rewind(0)
            pair = _pair_of(order, layers, tokens, context, memory=memory, rank=rank)
            for count in programs:
                if memory is not None:
                    memory.programs = count
                of_run = place | {"tokens": tokens, "programs": count}
                with _sms_left(count, device):
                    found, exposed = _one(pair, memory, of_run, seconds, device)
                rows += found
                if rank == 0:
                    wholes = [row for row in found if row.kind in (PAIR, COMPUTE, COMMUNICATION)]
                    shown = ", ".join(f"{row.kind} {row.seconds:.4e} s" for row in wholes)
                    print(
                        f"{tokens} tokens, {count} SMs: {shown}, exposed {exposed:.4e} s",
                        flush=True,
                    )
    return [astuple(row) for row in rows]


def _pair_of(
    order: tuple[Part, ...], layers: Sequence[ExpertParallelBlock], tokens: int,
    context: int, *, memory: Any, rank: int,
) -> Callable[..., Any]:  # fmt: skip
    """A function that runs the pair, whose backward micro-batch has gone forward here; with notes
    of the time or without, and with transfers or without."""
    mlp = layers[0].mlp
    config, recipe, device = mlp.config, mlp.recipe, mlp.gate.proj.weight.device
    angles = rotary_angles(config, context, device=device)
    hidden, other, grad = (
        random_rows(config, tokens, recipe=recipe, device=device, seed=10 * number + rank + 1)
        for number in range(3)
    )
    _, saved = run_forward(layers, ResidualStream(hidden, None), angles)
    wait_for_device(device)
    taken = 0 if memory is None else memory.used

    def pair(notes: Notes | None = None, *, moving: bool = True) -> Any:
        if memory is not None:
            memory.rewind(taken)
            memory.moving = moving
        with notes or nullcontext():
            return run_pair(
                order, layers, stream=ResidualStream(other, None), grad=grad, saved=saved,
                angles=angles, streams=two_streams(device),
                each=(lambda *_: None) if notes is None else notes.begin,
            )  # fmt: skip

    return pair


def _sms_left(programs: int, device: torch.device) -> Any:
    """Launches products for the SMs that communication leaves."""
    if device.type != "cuda":
        return nullcontext()
    every = torch.cuda.get_device_properties(device).multi_processor_count
    return limited_sms(every - programs, device=device, partition=False)


def _one(
    pair: Callable[..., Any], memory: Any, of_run: Mapping[str, Any], seconds: float,
    device: torch.device,
) -> tuple[list[KernelTiming], float]:  # fmt: skip
    """Rows of the three runs of one number of SMs and of the operators, and exposed seconds.

    Args:
        of_run: what all rows have in common, as `whole_row` takes it.
    """
    together = _time(RankStep(pair, device), seconds)
    still = partial(pair, moving=memory is None)
    alone: Means
    beside: Means = {}
    others: list[KernelTiming] = []
    if memory is None:
        paired, compute = _noted((pair, still), device)
        alone = means(*compute)
    else:
        apart = _time(RankStep(lambda: pair(moving=False), device), seconds)
        # What the transfers read has to be there: they are those of a pair that is kept.
        kept = pair()
        wait_for_device(device)
        transfers = list(memory.transfers)
        communicate = partial(_communicate, transfers)
        of_transfers = _time(RankStep(communicate, device), seconds)
        others = [
            whole_row(COMPUTE, *apart, exposed=0.0, **of_run),
            whole_row(COMMUNICATION, *of_transfers, exposed=None, **of_run),
        ]
        turns = torch.tensor(math.ceil(apart[0] / of_transfers[0]) + 1, device=device)
        distributed.all_reduce(turns, op=distributed.ReduceOp.MAX)
        unhindered = partial(_unhindered, pair, transfers, turns=int(turns))
        first = _noted((still, communicate, unhindered), device, rounds=1)
        resting = torch.tensor(rest_of_compute(*_alone_and_beside(*first)), device=device)
        distributed.all_reduce(resting)
        rest = float(resting) / distributed.get_world_size()
        if rest > _LEAST_REST * apart[0]:
            more = int(turns) + math.ceil(rest / of_transfers[0])
            unhindered = partial(_unhindered, pair, transfers, turns=more, rest=rest)
        paired, compute, *streams = _noted((pair, still, communicate, unhindered), device)
        _, alone, beside = _alone_and_beside(compute, *streams)
        del kept, transfers
    exposed = _idle_s(*paired) - _idle_s(*compute)
    operators = [
        operator_row(
            key,
            *found,
            alone=alone.get(key, _MISSING)[0],
            beside=beside.get(key, _MISSING)[0],
            **of_run,
        )
        for key, found in means(*paired).items()
    ]
    return [whole_row(PAIR, *together, exposed=exposed, **of_run), *others, *operators], exposed


def _alone_and_beside(
    compute: NotedStep, transfers: NotedStep, unhindered: NotedStep
) -> tuple[Counter[tuple[str, str, str]], Means, Means]:
    """How often a pair issues each operator, and mean seconds alone and beside the other stream."""
    issued = Counter((n.stream, *n.operator[:2]) for n in compute[0] if n.operator is not None)
    return issued, means(*compute) | means(*transfers), means(*unhindered, while_both=True)


def _idle_s(notes: Sequence[Note], times: Sequence[Sequence[int]]) -> float:
    """Mean seconds of a replay in which the compute stream has no operator."""
    return statistics.fmean(idle_seconds(notes, taken) for taken in times)


_MISSING = (math.nan, "", "", "")

Means = Mapping[tuple[str, str, str], tuple[float, str, str, str]]


def rest_of_compute(
    issued: Mapping[tuple[str, str, str], int], alone: Means, beside: Means
) -> float:
    """Seconds that compute waits for a pair's transfers, which go on as beside it while it runs and
    as alone while it waits.

    Args:
        issued: {(stream, name, phase): how often the pair issues it}.
        alone, beside: mean seconds of each, as `stream_notes.means` has them.
    """

    def total(times: Means, stream: str) -> float:
        known = [key for key in issued if key[0] == stream and key in alone and key in beside]
        return sum(issued[key] * times[key][0] for key in known)

    slowed = total(beside, COMMUNICATION)
    if not slowed:
        return 0.0
    left = 1 - total(beside, COMPUTE) / slowed
    return max(0.0, left * total(alone, COMMUNICATION))


def _communicate(
    transfers: Sequence[tuple[str, Callable[[], None]]], notes: Notes | None = None, *,
    stream: str = COMMUNICATION,
) -> None:  # fmt: skip
    """All transfers of a pair, one after another."""
    for site, transfer in transfers:
        if notes is not None:
            notes.stream_begins(0, stream)
        transfer()
        if notes is not None:
            phase, _, name = site.split(":")[:3]
            notes.note((name, phase, "", "", ""))


def _unhindered(
    pair: Callable[..., Any], transfers: Sequence[tuple[str, Callable[[], None]]], notes: Notes, *,
    turns: int, rest: float = 0.0,
) -> Any:  # fmt: skip
    """A pair without transfers, and beside it all of its transfers, so many times; behind the pair
    compute rests for about so many seconds, at most a tenth longer."""
    current, third = torch.cuda.current_stream(), _third_stream()
    third.wait_stream(current)
    with torch.cuda.stream(third):
        for _ in range(turns):
            _communicate(transfers, notes, stream=UNHINDERED)
    result = pair(notes, moving=False)
    if rest:
        torch.cuda._sleep(round(rest * _cycles_per_second()))  # type: ignore[no-untyped-call]
    current.wait_stream(third)
    return result


@cache
def _cycles_per_second() -> float:
    """Of the SM clock."""
    cycles, device = 10**8, torch.device("cuda")
    start = moment(device)
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
    return cycles / seconds_between(start, moment(device))


@cache
def _third_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]


# -- the table -------------------------------------------------------------------------------------


def measure_pair(
    config: ModelConfig,
    order: tuple[Part, ...],
    *,
    model: str,
    sizes: Sequence[tuple[int, int]],
    programs: tuple[int, ...],
    seconds: float,
    ranks: int,
    backend: str,
    out: Path,
    timeout_s: float,
) -> None:
    """Measure over `ranks` ranks the runs that the table at `out` lacks, and append their rows.

    Args:
        model: name of the config in the table.
        sizes: sequences of each micro-batch of a rank, and their context; one run for each.
        programs: SMs of communication, one run for each.
        seconds: that each is replayed.

    Raises ValueError where the ranks do not divide the experts."""
    if ranks < 2 or config.n_routed_experts % ranks:
        raise ValueError(
            f"ranks = {ranks}: allowed at least 2, that divide {config.n_routed_experts}"
            " routed experts"
        )
    known = {key[:2] for key in known_keys(out)}
    lacking = [
        size for size in sizes
        if any((PAIR, _whole_sizes(count, math.prod(size))) not in known for count in programs)
    ]  # fmt: skip
    if not lacking:
        return
    ran = run_ranks(
        _measure,
        (config, order, model, tuple(lacking), programs, seconds, backend),
        ranks=ranks, backend=backend, timeout_s=timeout_s,
    )  # fmt: skip
    append_rows([KernelTiming(*fields) for of_rank in ran for fields in of_rank], out)


def _whole_sizes(programs: int, tokens: int) -> str:
    return pairs_text([("communication_sms", programs), ("tokens", tokens)])


def whole_row(
    what: str, seconds: float, spread: float, *, exposed: float | None, tokens: int, programs: int,
    sms: int, source: str, common: Mapping[str, Any],
) -> KernelTiming:  # fmt: skip
    """A pair, its compute or its communication, of one rank.

    Args:
        exposed: seconds; None for communication alone.
        programs: SMs of communication, of `sms`.
        common: conditions of all rows of the rank.
    """
    values = {**common, "timing": "events", "statistic": "median"}
    if exposed is not None:
        values["exposed_s"] = f"{exposed:.4g}"
    return KernelTiming(
        kind=what,
        sizes=_whole_sizes(programs, tokens),
        dtype="fp8_e4m3",
        sms=sms,
        seconds=seconds,
        spread=spread,
        source=source,
        conditions=pairs_text(values.items()),
    )


def operator_row(
    key: tuple[str, str, str], seconds: float, kind: str, sizes: str, dtype: str, *, alone: float,
    beside: float, tokens: int, programs: int, sms: int, source: str, common: Mapping[str, Any],
) -> KernelTiming:  # fmt: skip
    """An operator in the order of a stream, of one rank.

    Args:
        key: stream, name and phase.
        seconds: in the pair.
        alone: without transfers; of a transfer, without compute.
        beside: with the other stream beside it all the time; not a number where that was not
            measured.
        programs, common: as of `whole_row`.
    """
    stream, name, phase = key
    values = {
        **common,
        "timing": "clock",
        "statistic": "mean",
        "tokens": tokens,
        "communication_sms": programs,
        "stream": stream,
        "phase": phase,
        "operator": name,
        "alone_s": f"{alone:.4g}",
        "beside_s": f"{beside:.4g}",
    }
    return KernelTiming(
        kind=kind,
        sizes=sizes,
        dtype=dtype,
        sms=programs if stream == COMMUNICATION else sms - programs,
        seconds=seconds,
        spread=0.0,
        source=source,
        conditions=pairs_text(values.items()),
    )
