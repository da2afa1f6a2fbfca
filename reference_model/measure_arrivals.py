"""Measure which ranks wait for which in expert-parallel steps on one host, layer by layer.

The clocks of two GPUs have nothing in common, so what a rank waits is measured where it waits: each
rank joins a barrier as soon as it is ready for a transfer, and times it. The rank that comes last
waits for nobody, so the shortest of these times is the barrier itself, and what a rank's own takes
beyond that is the time by which it came earlier than the last. The parts of a transfer, in order:

    compute_s   from the end of the last transfer until the rank is ready for this one
    waiting_s   until the last rank is
    seconds     of the transfer's operator: copies, a barrier, sums

`barrier_s` is the shortest barrier. Medians over repeats of the same step; deviation_s is the
standard deviation of the waiting.

Which experts a token chooses is planned (planned_routing.py). On GPUs a step is one captured graph,
so that no host is waited for, tokens travel through memory that the GPUs share (peer_memory.py) by
a stated number of SMs, and the replays that count follow some that do not.

    train    a micro-batch: forward, loss, backward; no sum of gradients, no optimizer
    decode   a step of `sequences` sequences that have `context` tokens cached, through the kernels
             and the transfers of training
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

from reference_model.captured import RankStep
from reference_model.config import ModelConfig
from reference_model.decode import InferenceExperts, InferenceModel
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
from reference_model.operators import NAMESPACE, Site
from reference_model.pair import UNKNOWN
from reference_model.planned_routing import LayerPlan, plan_layer, plan_routing
from reference_model.precision import Recipe
from reference_model.ranks import rank_device, run_ranks
from reference_model.recorder import prepare_weights
from reference_model.stream_notes import write_time

if TYPE_CHECKING:
    from reference_model.peer_memory import PeerMemory

TRAIN, DECODE = "train", "decode"
_WARM = 20
"""Replays before those that count, so that clock and power are those of a loop."""
_ROOM = 1 << 12
_PER_SECOND = 1_000_000_000
"""The clock counts nanoseconds."""


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
        """Tokens of each rank."""
        return self.sequences * (self.context if self.name == TRAIN else 1)


class LayerTransfer(NamedTuple):
    """One transfer of a step."""

    phase: str
    """forward or input_grad."""
    kind: str
    """dispatch or combine: in backward, those of the forward that it goes back through."""
    layer: int
    """Among the mixture-of-experts layers."""


class Arrivals(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every transfer between peers that is issued inside it, also in replays of it."""

    def __init__(self, device: torch.device, *, meet: Callable[[], object]) -> None:
        """`meet` holds this rank until all have come as far."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.meet = meet
        self.times = torch.zeros(_ROOM, dtype=torch.int64, device=device)
        self.sites: list[str] = []
        """Of the transfers of a step. Each has three times, behind that of the begin: ready, all
        ready, over."""

    def begin(self) -> None:
        """A step begins for all ranks."""
        self.sites = []
        self.meet()
        write_time(self.times, 0)

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
        place = 3 * len(self.sites) + 1
        write_time(self.times, place)
        self.meet()
        write_time(self.times, place + 1)
        result = func(*args, **named)
        write_time(self.times, place + 2)
        self.sites.append(named["site"])
        return result

    def parts(self) -> NDArray[np.float64]:
        """[transfers of the last step, 3], seconds until this rank was ready, of its barrier, and
        of the payload; waits for the step."""
        times = self.times[: 3 * len(self.sites) + 1].cpu().numpy()
        return np.diff(times).reshape(-1, 3) / _PER_SECOND

    def transfers(self) -> list[LayerTransfer]:
        """What they are. Backward goes through the layers from the last to the first."""
        seen: dict[tuple[str, str], int] = {}
        found = []
        for site in self.sites:
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

    def decode(self, x: Tensor, rows: int) -> Tensor:
        """Send x [T, H] through the experts of all ranks; returns [T, H]."""
        moe = self.moe
        routed = moe.route(x, Site("forward", "attention"))
        received = moe.dispatch(routed, UNKNOWN, Site("forward", "dispatch"))
        mlp = Site("forward", "mlp")
        out, shared_out, _ = moe.mlp(routed, moe.shared_gate_up(routed, mlp), received, mlp)
        return moe.combine(out, shared_out, received.layout)


def _experts(model: Transformer) -> list[ExpertParallelBlock]:
    """The layers whose experts are spread, in order of the forward pass."""
    blocks = [*model.blocks, *([] if model.mtp is None else [model.mtp.block])]
    return [block for block in blocks if isinstance(block, ExpertParallelBlock)]


def _run_steps(
    rank: int, ranks: int, config: ModelConfig, jobs: Sequence[Job], backend: str, repeats: int,
    programs: int,
) -> dict[str, Any]:  # fmt: skip
    """All steps of one process: for each job [repeats, transfers, 3], the parts; and the
    transfers."""
    device = rank_device(backend)
    recipe = Recipe("fp8", choose_kernels(None, device))
    model = Transformer(config, recipe=recipe, device=device)
    model.initialize(torch.Generator(device).manual_seed(0))
    spread_experts(model, rank=rank, ranks=ranks)
    prepare_weights(model)
    layers = _experts(model)
    memory = peer_memory(
        config, layers=len(layers), tokens=max(job.tokens for job in jobs), ranks=ranks,
        programs=programs, device=device,
    )  # fmt: skip
    one = torch.zeros(1, device=device)
    meet = partial(distributed.all_reduce, one) if memory is None else memory.barrier
    arrivals = Arrivals(device, meet=meet)
    warm = _WARM if device.type == "cuda" else 0
    results, transfers = [], []
    for job in jobs:
        plan_routing(layers, tokens=job.tokens, skew=job.skew, rank=rank, ranks=ranks)
        step = _train_step(model, job) if job.name == TRAIN else _decode_step(model, job)

        def timed(step: Callable[[], object] = step) -> object:
            if memory is not None:
                memory.rewind(0)
            with torch.no_grad(), arrivals:
                arrivals.begin()
                return step()

        replayed = RankStep(timed, device)
        steps = []
        for _ in range(warm + repeats):
            replayed()
            steps.append(arrivals.parts().tolist())
        results.append(steps[warm:])
        transfers.append([tuple(transfer) for transfer in arrivals.transfers()])
        if rank == 0:
            print(f"{_job_label(job)}: {repeats} steps done", flush=True)
        del replayed, step, timed
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


def peer_memory(
    config: ModelConfig, *, layers: int, tokens: int, ranks: int, programs: int,
    device: torch.device,
) -> PeerMemory | None:  # fmt: skip
    """Memory for the transfers of `layers` layers of up to `tokens` tokens a rank, in use from here
    on; None on CPUs, where the process group moves tokens.

    It has room for a forward chunk and a pair, with a quarter over: in each layer three times
    dispatch, once of gradients, and combine, each with room for all ranks' tokens, and what combine
    adds up."""
    if device.type != "cuda":
        return None
    from reference_model.peer_memory import share_memory, use_peer_memory

    row = config.hidden_size + config.hidden_size // 32 * 2 + 16 * config.num_experts_per_tok
    back = 2 * config.hidden_size + 8 * config.num_experts_per_tok
    per_layer = 3 * row * ranks + 3 * back * (ranks + 1)
    torch.cuda.empty_cache()
    memory = share_memory(tokens * layers * per_layer * 5 // 4, programs=programs)
    use_peer_memory(memory)
    return memory


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
    programs: int,
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
        (config, lacking, backend, repeats, programs),
        ranks=ranks,
        backend=backend,
        timeout_s=timeout_s,
    )
    for number, job in enumerate(lacking):
        rows = arrival_rows(
            config, job, model=model,
            transfers=[LayerTransfer(*transfer) for transfer in ran[0]["transfers"][number]],
            parts=np.array([result["results"][number] for result in ran]),
            kernels=ran[0]["kernels"], sms=ran[0]["sms"], programs=programs,
            launch="graph" if backend == "nccl" else "eager",
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
    parts: NDArray[np.float64],
    kernels: str,
    sms: int,
    programs: int,
    launch: str,
    sources: Sequence[str],
) -> list[KernelTiming]:
    """Parts as rows, one for each transfer and rank.

    Args:
        parts: [ranks, repeats, transfers, 3], as of `Arrivals.parts`.
    """
    ranks = len(parts)
    rows = []
    planned: dict[int, LayerPlan] = {}
    for number, transfer in enumerate(transfers):
        layer = transfer.layer
        if layer not in planned:
            planned[layer] = plan_layer(
                config, tokens=job.tokens, skew=job.skew, ranks=ranks, layer=layer
            )
        plan = planned[layer]
        computes, barriers, payloads = np.moveaxis(parts[:, :, number], 2, 0)  # [ranks, repeats]
        shortest = barriers.min(axis=0)
        # Rows travel from token to expert in dispatch and in the backward of combine.
        forth = (transfer.kind == "dispatch") == (transfer.phase == "forward")
        away = plan.sent if forth else plan.sent.T
        for rank in range(ranks):
            waiting, payload = (barriers[rank] - shortest).tolist(), payloads[rank].tolist()
            rows.append(
                KernelTiming(
                    kind=transfer.kind,
                    sizes=pairs_text(
                        [
                            ("hidden", config.hidden_size),
                            ("tokens", job.tokens),
                            ("ranks", ranks),
                            ("expert_rows", int(plan.expanded[:, rank].sum())),
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
                            ("timing", "clock"),
                            ("launch", launch),
                            ("communication_sms", programs),
                            ("repeats", len(payload)),
                            ("model", model),
                            ("job", job.name),
                            ("sequences", job.sequences),
                            ("context", job.context),
                            ("skew", f"{job.skew:g}"),
                            ("phase", transfer.phase),
                            ("layer", layer),
                            ("rank", rank),
                            ("compute_s", _seconds(computes[rank])),
                            ("waiting_s", _seconds(waiting)),
                            ("deviation_s", f"{statistics.pstdev(waiting):.4g}"),
                            ("barrier_s", _seconds(shortest)),
                        ]
                    ),
                )
            )
    return rows


def _seconds(values: Any) -> str:
    return f"{statistics.median(values):.4g}"
