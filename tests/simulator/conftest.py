"""A builder of small profiler traces, made up event by event, and a mapping for them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

MAPPING = """
name: made_up
format: kineto
kernel_set: made_up
devices: {NVIDIA H800: h800_sxm}
launch_latency: {value: 2 us, low: 1 us, high: 4 us, source: made up}
gap: {value: 2 us, low: 1 us, high: 3 us, source: made up}
cluster: h800_2048
expert_parallel_ranks: 64
communication: [all_to_all]
rank_wait: [barrier]
polled: [barrier_counts]
operators:
  product:
    {kind: gemm, dtype: fp8_e4m3, out_dtype: bfloat16, sizes: {m: grid_x * 128, n: 4096, k: 7168}}
  first:
    kind: gemm
    dtype: bfloat16
    out_dtype: bfloat16
    sizes: {m: input_0_0, n: input_1_1, k: input_0_1}
  second: {kind: quantize, dtype: bfloat16, out_dtype: fp8_e4m3, sizes: {rows: rows, columns: 7168}}
  send:
    kind: dispatch
    dtype: fp8_e4m3
    out_dtype: fp8_e4m3
    sizes: {tokens: 4096, rows: 32768, hidden: 7168, top_k: 8}
variables:
  rows: {match: cast, annotation: layer, value: grid_x}
unmapped: {wait: waits for other ranks}
kernels:
  - {match: gemm, operator: product}
  - {match: cast, annotation: layer, operators: [second, second]}
  - {match: matmul, host: "aten::mm", operator: first}
  - {match: all_to_all, operator: send}
  - {match: barrier, operator: wait}
"""


class ProfileBuilder:
    """Chrome trace events of one GPU; times in microseconds, as in such files."""

    def __init__(self, device: str | None = "NVIDIA H800") -> None:
        self.events: list[dict[str, Any]] = []
        self.device = device
        self._correlation = 100

    def call(
        self, name: str, at: float, us: float = 5, thread: int = 1, correlation: int | None = None
    ) -> int:
        self._correlation += 1
        used = self._correlation if correlation is None else correlation
        self.events.append(
            {
                "ph": "X",
                "cat": "cuda_runtime",
                "name": name,
                "pid": 1,
                "tid": thread,
                "ts": at,
                "dur": us,
                "args": {"correlation": used},
            }
        )
        return used

    def kernel(
        self,
        name: str,
        *,
        stream: int,
        at: float,
        us: float,
        correlation: int,
        grid: int = 1000,
        threads: int = 128,
        registers: int = 32,
        shared: int = 0,
        device: int = 0,
    ) -> None:
        self.events.append(
            {
                "ph": "X",
                "cat": "kernel",
                "name": name,
                "pid": 0,
                "tid": stream,
                "ts": at,
                "dur": us,
                "args": {
                    "device": device,
                    "stream": stream,
                    "correlation": correlation,
                    "grid": [grid, 1, 1],
                    "block": [threads, 1, 1],
                    "registers per thread": registers,
                    "shared memory": shared,
                },
            }
        )

    def launch(
        self,
        name: str,
        *,
        called: float,
        at: float,
        us: float,
        stream: int = 7,
        thread: int = 1,
        cost: float = 5,
        **kernel: Any,
    ) -> None:
        """A launch call at `called` and its kernel at `at`."""
        used = self.call("cudaLaunchKernel", called, cost, thread)
        self.kernel(name, stream=stream, at=at, us=us, correlation=used, **kernel)

    def span(
        self,
        name: str,
        at: float,
        end: float,
        *,
        category: str = "user_annotation",
        thread: int = 1,
        dims: list[list[int]] | None = None,
        types: list[str] | None = None,
    ) -> None:
        """A host operator or annotation; its inputs are of BF16 where no types are given."""
        args: dict[str, Any] = {}
        if dims is not None:
            args = {"Input Dims": dims, "Input type": types or ["c10::BFloat16"] * len(dims)}
        self.events.append(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "pid": 1,
                "tid": thread,
                "ts": at,
                "dur": end - at,
                "args": args,
            }
        )

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"schemaVersion": 1, "traceEvents": self.events}
        if self.device is not None:
            document["deviceProperties"] = [
                {
                    "id": 0,
                    "name": self.device,
                    "numSms": 132,
                    "maxThreadsPerMultiprocessor": 2048,
                    "regsPerMultiprocessor": 65536,
                    "sharedMemPerMultiprocessor": 233472,
                }
            ]
        return document

    def write(self, path: Path) -> Path:
        data = json.dumps(self.document()).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path


@pytest.fixture
def profile() -> ProfileBuilder:
    return ProfileBuilder()


@pytest.fixture
def other_device_profile() -> ProfileBuilder:
    return ProfileBuilder("NVIDIA A100-SXM4-80GB")


@pytest.fixture
def overlapped_profile() -> ProfileBuilder:
    """Two layers on a compute stream (7), each with an all-to-all on stream 27 between its halves.

    The all-to-all waits for the first half, the second half for the all-to-all; of the second
    layer the all-to-all is the longer part, so that the compute stream stalls for 300 us.
    """
    built = ProfileBuilder()
    at, gpu = 1000.0, 1020.0
    for exchange in (300.0, 700.0):
        built.span("layer", at - 5, at + 190)
        built.launch("cast", called=at, at=gpu, us=100, grid=4096)
        built.call("cudaStreamWaitEvent", at + 20, 1)
        built.launch("all_to_all", called=at + 25, at=gpu + 102, us=exchange, stream=27, grid=20)
        built.launch("gemm", called=at + 40, at=gpu + 102, us=400, grid=112)
        built.call("cudaStreamWaitEvent", at + 60, 1)
        after = max(gpu + 102 + 400, gpu + 102 + exchange) + 2
        built.launch("cast", called=at + 80, at=after, us=100, grid=4096)
        at, gpu = at + 200, after + 102
    return built


@pytest.fixture
def made_up_mapping(tmp_path: Path) -> str:
    path = tmp_path / "made_up.yaml"
    path.write_text(MAPPING, encoding="utf-8")
    return str(path)
