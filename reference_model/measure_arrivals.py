"""Measure which ranks wait for which in expert-parallel steps on one host, layer by layer.

The clocks of two GPUs have nothing in common, so what a rank waits is measured where it waits: each
rank joins an all-reduce of one element as soon as it is ready for a transfer, and times it. The
rank that comes last waits for nobody, so the shortest of these times is the all-reduce itself, and
what a rank's own takes beyond that is the time by which it came earlier than the last. The parts of
a transfer, in order:

    compute_s   from the end of the last transfer until the rank is ready for this one
    waiting_s   until the last rank is
    layout_s    from there to the transfer: counts are exchanged before a dispatch, and the host
                reads them
    seconds     of the transfer's operator (see peer_operators.py): packing, all-to-all, sums

`barrier_s` is the shortest all-reduce. Medians over repeats of the same step; deviation_s is the
standard deviation of the waiting.

Which experts a token chooses is planned: drawn from a popularity that falls by exp(-skew) from the
first expert to the last, by a seed that is known beforehand, so that the rows of each rank, and
what they should take, can be worked out before a step runs (`planned_rows`). The gate computes its
own choice all the same. Steps are launched kernel by kernel, by one process per GPU.

    train    a micro-batch: forward, loss, backward; no sum of gradients, no optimizer
    decode   a step of `sequences` sequences that have `context` tokens cached, through the kernels
             and the transfers of training
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

from reference_model.config import ModelConfig
from reference_model.decode import DecodeRows, InferenceExperts, InferenceModel
from reference_model.expert_parallel import ExpertParallelBlock, spread_experts
from reference_model.gpu import choose_kernels
from reference_model.measure import (
    KernelTiming,
    append_rows,
    device_source,
    known_conditions,
    pairs_text,
)
from reference_model.model import Transformer
from reference_model.moe import ExpertRows, Gate
from reference_model.moments import Moment, moment, seconds_between
from reference_model.operators import NAMESPACE, Site
from reference_model.precision import Recipe
from reference_model.ranks import rank_device, run_ranks

TRAIN, DECODE = "train", "decode"
_WARM = 2
"""Steps before those that count."""


class Job(NamedTuple):
    """A step to repeat."""

    name: str
    """TRAIN or DECODE."""
    sequences: int
    """Of each rank."""
    context: int
    """Tokens of each sequence; of a decode step, those it has cached, the new one included."""
    skew: float
    """Of the experts' popularity, 0 for experts that are all alike."""

    @property
    def tokens(self) -> int:
        """Of each rank."""
        return self.sequences * (self.context if self.name == TRAIN else 1)


class Parts(NamedTuple):
    """One transfer of one rank in one step, seconds."""

    compute: float
    barrier: float
    layout: float
    payload: float


class LayerTransfer(NamedTuple):
    """What `Parts` are of."""

    phase: str
    """forward or input_grad."""
    kind: str
    """dispatch or combine: in backward, those of the forward that it goes back through."""
    layer: int
    """Among the mixture-of-experts layers."""


# -- routing that is known beforehand --------------------------------------------------------------


def planned_choices(config: ModelConfig, *, tokens: int, skew: float, seed: int) -> Tensor:
    """Each token's experts, int64 [tokens, K], drawn without replacement; groups are not looked
    at."""
    generator = torch.Generator().manual_seed(seed)
    experts = config.n_routed_experts
    uniform = torch.rand((tokens, experts), generator=generator, dtype=torch.float64)
    popularity = -skew * torch.arange(experts, dtype=torch.float64) / (experts - 1)
    # The largest of these are a draw in proportion to exp(popularity): the Gumbel trick.
    return (popularity - torch.log(-torch.log(uniform))).topk(config.num_experts_per_tok).indices


def _plan(config: ModelConfig, job: Job, *, rank: int, layer: int) -> Tensor:
    return planned_choices(config, tokens=job.tokens, skew=job.skew, seed=1000 * layer + rank)


class LayerRows(NamedTuple):
    """Rows of one layer."""

    sent: Tensor
    """int64 [from rank, to rank], tokens that travel in dispatch."""
    expanded: Tensor
    """int64 [rank], rows of its experts: one a choice."""


def planned_rows(config: ModelConfig, job: Job, *, ranks: int, layer: int) -> LayerRows:
    """What the plan means for every rank."""
    local = config.n_routed_experts // ranks
    sent, expanded = [], torch.zeros(ranks, dtype=torch.int64)
    for rank in range(ranks):
        homes = _plan(config, job, rank=rank, layer=layer) // local
        reached = torch.zeros((job.tokens, ranks), dtype=torch.bool).scatter_(1, homes, True)
        sent.append(reached.sum(dim=0))
        expanded += homes.flatten().bincount(minlength=ranks)
    return LayerRows(torch.stack(sent), expanded)


class PlannedGate(Gate):
    """A gate that computes its choice and then takes the planned one."""

    def __init__(self, gate: Gate, choices: Tensor, *, chosen: Callable[[], None]) -> None:
        """`chosen` is called where a rank has chosen: it is ready for dispatch."""
        super().__init__(gate.config, recipe=gate.recipe, device=choices.device)
        self.proj = gate.proj
        self.choices = choices
        self.chosen = chosen

    def forward(self, x: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """See Gate."""
        logits, _, weights = super().forward(x, site)
        self.chosen()
        return logits, self.choices, weights


# -- a step and its transfers ----------------------------------------------------------------------


class Arrivals(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every transfer between peers that runs inside it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.one = torch.zeros(1, device=device)
        self.marks: list[tuple[str, tuple[Moment, Moment, Moment, Moment, Moment]]] = []
        """Site of each transfer, and: last one over, ready, all ready, begun, over."""
        self._over: Moment = 0.0
        self._ready: tuple[Moment, Moment] | None = None

    def begin(self) -> None:
        """A step begins for all ranks."""
        distributed.all_reduce(self.one)
        self.marks = []
        self._over, self._ready = moment(self.device), None

    def arrive(self) -> None:
        """This rank is ready for its next transfer."""
        ready = moment(self.device)
        distributed.all_reduce(self.one)
        self._ready = (ready, moment(self.device))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func.namespace != NAMESPACE or "sent" not in named:
            return func(*args, **named)
        if self._ready is None:
            self.arrive()
        assert self._ready is not None
        begun = moment(self.device)
        result = func(*args, **named)
        over = moment(self.device)
        self.marks.append((named["site"], (self._over, *self._ready, begun, over)))
        self._over, self._ready = over, None
        return result

    def parts(self) -> list[Parts]:
        """Of the transfers since `begin`, in order."""
        return [
            Parts(*(seconds_between(a, b) for a, b in pairwise(marks))) for _, marks in self.marks
        ]

    def transfers(self) -> list[LayerTransfer]:
        """What they are. Backward goes through the layers from the last to the first."""
        seen: dict[tuple[str, str], int] = {}
        found = []
        for site, _ in self.marks:
            phase, kind = site.split(":")[:2]
            number = seen.get((phase, kind), 0)
            seen[phase, kind] = number + 1
            found.append(LayerTransfer(phase, kind, number))
        return [
            t if t.phase == "forward" else t._replace(layer=seen[t.phase, t.kind] - 1 - t.layer)
            for t in found
        ]


class PeerExperts(InferenceExperts):
    """The mixture of experts of a decode step whose experts are spread over ranks."""

    def decode(self, x: Tensor, rows: DecodeRows) -> Tensor:
        """Send x [T, H] through the experts of all ranks; returns [T, H]."""
        moe = self.moe
        routed = moe.route(x, Site("forward", "attention"))
        # How many rows arrive is known only once the ranks have told each other.
        unknown = ExpertRows(received=0, expanded=0)
        received = moe.dispatch(routed, unknown, Site("forward", "dispatch"))
        mlp = Site("forward", "mlp")
        out, shared_out, _ = moe.mlp(routed, moe.shared_gate_up(routed, mlp), received, mlp)
        return moe.combine(out, shared_out, received.layout)


def _experts(model: Transformer) -> list[ExpertParallelBlock]:
    """The layers whose experts are spread, in order of the forward pass."""
    blocks = [*model.blocks, *([] if model.mtp is None else [model.mtp.block])]
    return [block for block in blocks if isinstance(block, ExpertParallelBlock)]


def _run_steps(
    rank: int, ranks: int, config: ModelConfig, jobs: Sequence[Job], backend: str, repeats: int
) -> dict[str, Any]:
    """All steps of one process: for each job [repeat][transfer], the parts; and the transfers."""
    device = rank_device(backend)
    recipe = Recipe("fp8", choose_kernels(None, device))
    model = Transformer(config, recipe=recipe, device=device)
    model.initialize(torch.Generator(device).manual_seed(0))
    spread_experts(model, rank=rank, ranks=ranks)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    gates = [block.mlp.gate for block in _experts(model)]
    arrivals = Arrivals(device)
    results, transfers = [], []
    for job in jobs:
        for layer, (block, gate) in enumerate(zip(_experts(model), gates, strict=True)):
            choices = _plan(config, job, rank=rank, layer=layer).to(device)
            block.mlp.gate = PlannedGate(gate, choices, chosen=arrivals.arrive)
        step = _train_step(model, job) if job.name == TRAIN else _decode_step(model, job)
        steps = []
        with torch.no_grad(), arrivals:
            for _ in range(_WARM + repeats):
                arrivals.begin()
                step()
                steps.append([tuple(parts) for parts in arrivals.parts()])
        results.append(steps[_WARM:])
        transfers.append([tuple(transfer) for transfer in arrivals.transfers()])
        if rank == 0:
            print(f"{_job_label(job)}: {repeats} steps done", flush=True)
    sms = 1
    if device.type == "cuda":
        sms = torch.cuda.get_device_properties(device).multi_processor_count
    return {
        "results": results,
        "transfers": transfers,
        "source": device_source(device),
        "kernels": recipe.kernels,
        "sms": sms,
    }


def _train_step(model: Transformer, job: Job) -> Any:
    ahead = 1 + model.config.num_nextn_predict_layers
    tokens = _tokens(model, (job.sequences, job.context + ahead))

    def step() -> None:
        _, saved = model.loss(tokens, prediction_weight=0.3)
        model.backward(saved)

    return step


def _decode_step(model: Transformer, job: Job) -> Any:
    serving = InferenceModel(model)
    for served in serving.blocks:
        if isinstance(served.block, ExpertParallelBlock):
            served.experts = PeerExperts(served.block.mlp)
    caches = serving.new_caches(sequences=job.sequences, capacity=job.context)
    for cache in caches:
        cache.values.normal_()
    tokens = _tokens(model, (job.sequences, 1))
    lengths = tokens.new_full((job.sequences,), job.context - 1)
    return lambda: serving.decode(tokens, lengths, caches)


def _tokens(model: Transformer, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator(model.device).manual_seed(1)
    return torch.randint(model.config.vocab_size, shape, generator=generator, device=model.device)


# -- the table -------------------------------------------------------------------------------------


def _job_label(job: Job) -> str:
    """One line that names a job."""
    return f"{job.name} {job.sequences} x {job.context}, skew {job.skew:g}"


def measure_arrivals(
    config: ModelConfig,
    jobs: Sequence[Job],
    *,
    model: str,
    ranks: int,
    backend: str,
    repeats: int,
    out: Path,
    timeout_s: float,
) -> None:
    """Run the jobs that the table at `out` lacks over `ranks` ranks and append their rows; prints
    the longest waiting of each.

    Raises ValueError where the ranks do not divide the experts."""
    if config.n_routed_experts % ranks:
        raise ValueError(f"ranks = {ranks} do not divide {config.n_routed_experts} routed experts")
    done = {
        tuple(row[name] for name in ("job", "sequences", "context", "skew"))
        for row in known_conditions(out)
    }
    lacking = [
        job for job in jobs if tuple(f"{v:g}" if v != job.name else v for v in job) not in done
    ]
    if not lacking:
        return
    ran = run_ranks(
        _run_steps,
        (config, lacking, backend, repeats),
        ranks=ranks,
        backend=backend,
        timeout_s=timeout_s,
    )
    for number, job in enumerate(lacking):
        rows = arrival_rows(
            config, job, model=model,
            transfers=[LayerTransfer(*transfer) for transfer in ran[0]["transfers"][number]],
            parts=[
                [[Parts(*parts) for parts in step] for step in result["results"][number]]
                for result in ran
            ],
            kernels=ran[0]["kernels"], sms=ran[0]["sms"],
            sources=[result["source"] for result in ran],
        )  # fmt: skip
        append_rows(rows, out)
        longest = max(rows, key=lambda row: float(dict(_pairs(row.conditions))["waiting_s"]))
        print(
            f"{_job_label(job)}: longest waiting {longest.sizes}, {longest.conditions}", flush=True
        )


def _pairs(text: str) -> list[list[str]]:
    return [pair.split("=", 1) for pair in text.split(";")]


def arrival_rows(
    config: ModelConfig,
    job: Job,
    *,
    model: str,
    transfers: Sequence[LayerTransfer],
    parts: Sequence[Sequence[Sequence[Parts]]],
    kernels: str,
    sms: int,
    sources: Sequence[str],
) -> list[KernelTiming]:
    """Parts [rank][repeat][transfer] as rows, one for each transfer and rank."""
    ranks = len(parts)
    rows = []
    planned: dict[int, LayerRows] = {}
    for number, transfer in enumerate(transfers):
        layer = transfer.layer
        if layer not in planned:
            planned[layer] = planned_rows(config, job, ranks=ranks, layer=layer)
        plan = planned[layer]
        seen = [[step[number] for step in steps] for steps in parts]  # [rank][repeat]
        shortest = [min(p.barrier for p in at_once) for at_once in zip(*seen, strict=True)]
        # Rows travel from token to expert in dispatch and in the backward of combine.
        forth = (transfer.kind == "dispatch") == (transfer.phase == "forward")
        away = plan.sent if forth else plan.sent.T
        for rank, mine in enumerate(seen):
            waiting = [p.barrier - least for p, least in zip(mine, shortest, strict=True)]
            payload = [p.payload for p in mine]
            rows.append(
                KernelTiming(
                    kind=transfer.kind,
                    sizes=pairs_text(
                        [
                            ("hidden", config.hidden_size),
                            ("tokens", job.tokens),
                            ("ranks", ranks),
                            ("expert_rows", int(plan.expanded[rank])),
                            ("rows_sent", int(away[rank].sum() - away[rank, rank])),
                            ("rows_received", int(away[:, rank].sum() - away[rank, rank])),
                        ]
                    ),
                    dtype="fp8_e4m3" if forth else "bfloat16",
                    sms=sms,
                    seconds=statistics.median(payload),
                    spread=statistics.pstdev(payload) / statistics.mean(payload),
                    source=sources[rank],
                    conditions=pairs_text(
                        [
                            ("set", f"dsv3sim_{kernels}"),
                            ("statistic", "median"),
                            ("timing", "events"),
                            ("launch", "eager"),
                            ("repeats", len(mine)),
                            ("model", model),
                            ("job", job.name),
                            ("sequences", job.sequences),
                            ("context", job.context),
                            ("skew", f"{job.skew:g}"),
                            ("phase", transfer.phase),
                            ("layer", layer),
                            ("rank", rank),
                            ("compute_s", _seconds(p.compute for p in mine)),
                            ("waiting_s", _seconds(waiting)),
                            ("deviation_s", f"{statistics.pstdev(waiting):.4g}"),
                            ("barrier_s", _seconds(shortest)),
                            ("layout_s", _seconds(p.layout for p in mine)),
                        ]
                    ),
                )
            )
    return rows


def _seconds(values: Any) -> str:
    return f"{statistics.median(values):.4g}"
