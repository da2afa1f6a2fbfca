# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Measure on a GPU what the tables of operators do not hold: a small gate, gaps in a CUDA graph.

    python -m reference_model.decode_probe      prints measurement rows of the gate, then the gaps

The gate is the model's own, at the token counts of decode steps. The gaps are those between kernels
of a chain of projections at decode sizes, replayed as one CUDA graph under the profiler.
"""

import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import triton
from torch import Tensor

from reference_model.kernels.triton_routing import launch_gate
from reference_model.measure import seconds_between_events

EXPERTS, GROUPS, GROUPS_KEPT, TOP_K = 256, 8, 4, 8
SCALING = 2.5
LAUNCHES, REPLAYS = 20, 7
NANOSECOND = 1e-9
"""Unit of the profiler's times, in seconds."""
LAYERS = 12
"""Weights of the chain, so many that they do not stay in the L2 cache."""
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 4096, 8192)


def seconds_in_graph(launch: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of a launch, start to start within a CUDA graph, and their relative spread."""
    graph = captured(lambda: [launch() for _ in range(LAUNCHES)])
    graph.replay()
    samples = [seconds_between_events(graph.replay) / LAUNCHES for _ in range(REPLAYS)]
    middle = statistics.median(samples)
    return middle, statistics.stdev(samples) / middle


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The launches of `run` as a graph, after a warm-up."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def decode_chain(device: torch.device) -> Callable[[], Tensor]:
    """Projections of several layers at 64 tokens, with the small kernels between them."""

    def weights(out: int, inner: int) -> list[Tensor]:
        return [
            torch.randn((out, inner), device=device, dtype=torch.bfloat16) for _ in range(LAYERS)
        ]

    down, up, out = weights(2112, 7168), weights(24576, 1536), weights(7168, 16384)
    x = torch.randn((64, 7168), device=device, dtype=torch.bfloat16)

    def run() -> Tensor:
        hidden = x
        for d, u, o in zip(down, up, out, strict=True):
            queries = (hidden @ d.t())[:, :1536].contiguous() @ u.t()
            values = torch.relu(queries[:, :16384].contiguous())
            hidden = (values @ o.t()) * 0.01
        return hidden

    return run


def gaps_in_graph(run: Callable[[], object]) -> list[float]:
    """Seconds between the end of each kernel and the start of the next, in one replay."""
    from torch.profiler import ProfilerActivity, profile

    graph = captured(run)
    graph.replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        graph.replay()
        torch.cuda.synchronize()
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    assert results is not None
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in results.events()
        if "CUDA" in str(event.device_type()) and event.duration_ns() > 0
    )
    return [(after[0] - before[1]) * NANOSECOND for before, after in pairwise(spans)]


def main() -> None:
    """Print rows of the gate in the columns of the measurement tables, then the gaps."""
    if not torch.cuda.is_available():
        raise SystemExit("decode_probe measures a CUDA GPU; there is none")
    device = torch.device("cuda")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name()
    source = f"dsv3sim decode_probe: {name}, torch {torch.__version__}, triton {triton.__version__}"
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    for tokens in TOKENS:
        logits = torch.randn((tokens, EXPERTS), device=device)
        bias = torch.randn(EXPERTS, device=device)
        launch = partial(
            launch_gate, logits, bias,
            scoring="sigmoid", n_group=GROUPS, topk_group=GROUPS_KEPT, top_k=TOP_K,
            normalise=True, scaling=SCALING, site="",
        )  # fmt: skip
        seconds, spread = seconds_in_graph(launch)
        print(
            f"gate,experts={EXPERTS};tokens={tokens};top_k={TOP_K},float32,{sms},{seconds:.5g},"
            f'{spread:.3g},"{source}",out_dtype=float32;set=dsv3sim_decode_probe'
        )
    gaps = sorted(gaps_in_graph(decode_chain(device)))
    tenth = len(gaps) // 10
    print(
        f"gaps between {len(gaps) + 1} kernels: mean {statistics.mean(gaps):.3g} s, "
        f"10% below {gaps[tenth]:.3g} s, 10% above {gaps[-tenth - 1]:.3g} s"
    )


if __name__ == "__main__":
    main()
