"""Write measurements/h800_sxm.csv from public H800 tables and published figures.

    python -m simulator.calibration.shipping.h800_tables --shared DIR [--out FILE]

``--shared`` is the folder that holds measured/h800: the kernel table of DeepSeek's published
training trace, and InferSim's benchmark tables. Published figures of DeepGEMM, DeepEP and FlashMLA
are typed in below. What each source needs before it can be trusted:

- Training trace: a kernel's time holds for the SMs and the all-to-all share it ran under. Helper
  kernels join their operator; expert weight gradients run on two streams, so their wall time counts
  (mappings/deepseek_training_trace.yaml).
- Grouped GEMMs of InferSim: the rows of each expert were random draws, and only the utilisation
  knows them, so rows are recovered as mfu x peak x latency / (2 n k).
- Two dense rows of InferSim (k=16384 n=512, k=65536 n=128) are absorbed projections timed as one
  dense GEMM; as such they are kept.
"""

import argparse
import csv
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hardware_profiles.fields import ROOT, read_yaml
from hardware_profiles.schema import load_calibration, load_gpu
from hardware_profiles.tables import Measurement, table_path, write_measurements
from hardware_profiles.units import Seconds, unit_factor

GPU = "h800_sxm"
TRACE = "deepseek_training"
MICROSECOND = unit_factor("us", "time")
TERAFLOPS = unit_factor("TFLOP/s", "compute")
GIGABYTES = unit_factor("GB/s", "bandwidth")

COMPUTE_SMS = 112
"""Blocks of every persistent GEMM of the trace; the other 20 SMs belong to communication."""
COMMUNICATION_SMS = 20
COMPUTE_STREAM, COMMUNICATION_STREAM = 7, 27

# V3's sizes that the benchmark tables leave unsaid.
HIDDEN, EXPERT_INTERMEDIATE, HEADS = 7168, 2048, 128
LATENT, ROPE, NOPE, VALUE = 512, 64, 128, 128

DEEPGEMM = "DeepGEMM README, 2025-03-25 (commit 55ab91f), H800 SXM5"
DEEPGEMM_DENSE = {  # (m, n, k): TFLOP/s
    (64, 2112, 7168): 206,
    (64, 24576, 1536): 289,
    (64, 32768, 512): 219,
    (64, 7168, 16384): 336,
    (64, 4096, 7168): 287,
    (64, 7168, 2048): 295,
    (128, 2112, 7168): 352,
    (128, 24576, 1536): 535,
    (128, 32768, 512): 358,
    (128, 7168, 16384): 645,
    (128, 4096, 7168): 533,
    (128, 7168, 2048): 510,
    (4096, 2112, 7168): 1009,
    (4096, 24576, 1536): 1125,
    (4096, 32768, 512): 751,
    (4096, 7168, 16384): 1426,
    (4096, 4096, 7168): 1265,
    (4096, 7168, 2048): 1168,
}
DEEPGEMM_GROUPED = {  # (groups, rows per group, n, k): TFLOP/s, contiguous layout
    (4, 8192, 4096, 7168): 1346,
    (4, 8192, 7168, 2048): 1214,
    (8, 4096, 4096, 7168): 1346,
    (8, 4096, 7168, 2048): 1214,
}
DEEPGEMM_MASKED = {  # the same, masked layout
    (1, 1024, 4096, 7168): 1233,
    (1, 1024, 7168, 2048): 925,
    (2, 512, 4096, 7168): 1040,
    (2, 512, 7168, 2048): 916,
    (4, 256, 4096, 7168): 932,
    (4, 256, 7168, 2048): 815,
}

DEEPEP = "DeepEP normal kernels, H800, 4,096 tokens, FP8 dispatch, BF16 combine"
# {nodes: (dispatch, combine) in GB/s}; own node counted; one node: NVLink, beyond: RDMA.
DEEPEP_NORMAL = {
    "deepep_2025_04": {1: (153, 158), 2: (43, 43), 4: (58, 57), 8: (51, 50)},
    "deepep_2025_02": {1: (153, 158), 2: (43, 43), 4: (44, 47), 8: (46, 45)},
}
DEEPEP_SOURCE = {"deepep_2025_04": "docs/legacy.md", "deepep_2025_02": "README of commit ebfe47e"}
DEEPEP_SMS = 24
NIC = "400 Gbit/s"
"""Line rate for each GPU behind the figures of DeepEP."""

FLASHMLA = "FlashMLA README, 2025-04-22, H800 SXM5, dense decode, compute-bound; sizes assumed"
FLASHMLA_RATE = 660  # TFLOP/s
FLASHMLA_SEQUENCES, FLASHMLA_LENGTH = 128, 4096


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of an operator in the training trace."""

    operator: str
    slot: int
    start: Seconds
    seconds: Seconds
    sms: int
    all_to_all_share: float
    kernels: int


def main(arguments: list[str] | None = None) -> None:
    """Read the tables under --shared and write the measurement table."""
    parser = argparse.ArgumentParser(prog="python -m simulator.calibration.shipping.h800_tables")
    parser.add_argument("--shared", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=table_path(GPU), metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        rows = measurements(options.shared / "measured" / "h800")
    except ValueError as error:
        parser.error(str(error))
    write_measurements(options.out, rows)


def measurements(folder: Path) -> list[Measurement]:
    """All rows of the H800 table, out of the tables in ``folder`` and the published figures."""
    return [
        *training_trace(folder / "h800_train_kernels.csv"),
        *dense_gemm(folder / "gemm_fp8.csv"),
        *_grouped_gemm(folder / "grouped_gemm_prefill_fp8.csv", kind="grouped_gemm"),
        *_grouped_gemm(folder / "grouped_gemm_decode_fp8.csv", kind="masked_grouped_gemm"),
        *mla_prefill(folder / "mla_prefill.csv"),
        *_mla_decode(folder / "mla_decode.csv"),
        *deepgemm(),
        *deepep(),
        flashmla(),
    ]


# -- the training trace ----------------------------------------------------------------------------


def training_trace(path: Path) -> Iterator[Measurement]:
    """One row for each distinct operator of the trace: the mean over its launches."""
    mapping = read_yaml(
        ROOT / "mappings" / "deepseek_training_trace.yaml", where="deepseek_training_trace.yaml"
    )
    kernels = read_table(path)
    slots = slot_variables(kernels)
    groups: dict[tuple[Any, ...], list[Launch]] = defaultdict(list)
    for launch in launches(kernels, mapping):
        entry = mapping["operators"][launch.operator]
        variables = slots[launch.slot]
        sizes = tuple(
            sorted((name, variables.get(size, size)) for name, size in entry["sizes"].items())
        )
        accumulate = entry.get("accumulate", False)
        nodes = "8" if entry["kind"] in {"dispatch", "combine"} else ""
        types = (entry["dtype"], entry["out_dtype"])
        groups[entry["kind"], sizes, *types, launch.sms, nodes, accumulate].append(launch)
    for (kind, sizes, dtype, out_dtype, sms, nodes, accumulate), group in groups.items():
        seconds = [launch.seconds for launch in group]
        mean = statistics.fmean(seconds)
        # Shares are weighted by time: that is how much of the mean was slowed.
        share = sum(launch.all_to_all_share * launch.seconds for launch in group) / sum(seconds)
        names = ", ".join(sorted({launch.operator for launch in group}))
        conditions = {"set": TRACE, "out_dtype": out_dtype, "repeats": str(len(group))}
        launched = statistics.fmean(launch.kernels for launch in group)
        if launched > 1:
            conditions["kernels"] = f"{launched:.3g}"
        if accumulate:
            conditions["accumulate"] = "yes"
        if nodes:
            # Its own traffic is no disturbance; what ran beside it is compute.
            conditions |= {"nodes": nodes, "beside": "compute"}
        elif sms == COMMUNICATION_SMS:
            conditions["beside"] = "compute"
        elif sms == COMPUTE_SMS:
            conditions["pair"] = "yes"
            if share:
                conditions["all_to_all"] = f"{share:.3f}"
        yield Measurement(
            kind=kind,
            sizes=sizes,
            dtype=dtype,
            sms=sms,
            seconds=mean,
            spread=statistics.stdev(seconds) / mean if len(group) > 1 else None,
            source=f"deepseek-ai/profile-data train.json: {names}",
            conditions=tuple(sorted(conditions.items())),
        )


def slot_variables(kernels: list[dict[str, str]]) -> dict[int, dict[str, int]]:
    """Rows of each slot, read off launch grids: 16 rows per block to expand, 1 token to reduce."""
    variables: dict[int, dict[str, int]] = defaultdict(dict)
    read_from = {
        "F.moe_expand(permute) fp8": ("rows_f", 16),
        "B.moe_expand(permute) dY fp8": ("rows_b", 16),
        "F.moe_reduce(unpermute, sum over local experts)": ("received_f", 1),
        "B.moe_reduce(unpermute dX)": ("received_b", 1),
    }
    for kernel in kernels:
        if kernel["logical_op"] in read_from:
            name, per_block = read_from[kernel["logical_op"]]
            blocks = int(kernel["grid"].split("x")[0])
            variables[int(kernel["slot"])][name] = blocks * per_block
    return variables


def launches(kernels: list[dict[str, str]], mapping: Mapping[str, Any]) -> list[Launch]:
    """Join kernels into operator launches, helpers added to the operator they belong to."""
    main_of = {part: main for main, parts in mapping["together"].items() for part in parts}
    known = {*mapping["operators"], *mapping["helpers"], *mapping["unmapped"], *main_of}
    unknown = sorted({kernel["logical_op"] for kernel in kernels} - known)
    if unknown:
        raise ValueError(f"deepseek_training_trace.yaml: no entry for the kernel {unknown[0]!r}")
    gap = kernel_gap(kernels)
    parts: dict[tuple[int, str], list[dict[str, str]]] = defaultdict(list)
    for kernel in kernels:
        operator = main_of.get(kernel["logical_op"], kernel["logical_op"])
        parts[int(kernel["slot"]), operator].append(kernel)
    compute = [
        (start_of(kernel), end_of(kernel))
        for kernel in kernels
        if int(kernel["stream"]) == COMPUTE_STREAM
    ]
    joined = {
        (slot, operator): join(operator, slot, group, gap, compute)
        for (slot, operator), group in parts.items()
        if operator in mapping["operators"]
    }
    extra: dict[tuple[int, str], Seconds] = defaultdict(float)
    helpers: dict[tuple[int, str], int] = defaultdict(int)
    for kernel in kernels:
        if kernel["logical_op"] in mapping["helpers"]:
            host = helped(kernel, mapping, joined)
            extra[host] += duration_of(kernel) + gap
            helpers[host] += 1
    return [
        replace(
            launch,
            seconds=launch.seconds + extra[key],
            kernels=launch.kernels + helpers[key],
        )
        for key, launch in joined.items()
    ]


def join(
    operator: str,
    slot: int,
    kernels: list[dict[str, str]],
    gap: Seconds,
    compute: list[tuple[Seconds, Seconds]],
) -> Launch:
    """One launch out of the kernels of one operator in one slot."""
    busy = sum(duration_of(kernel) for kernel in kernels)
    start, end = min(map(start_of, kernels)), max(map(end_of, kernels))
    streams = {int(kernel["stream"]) for kernel in kernels}
    # Kernels of one stream follow each other; a launch-bound pause between them is the host's.
    seconds = end - start if len(streams) > 1 else busy + gap * (len(kernels) - 1)
    shares = [(float(k["overlap_a2a"] or 0.0), duration_of(k)) for k in kernels]
    share = sum(share * duration for share, duration in shares) / max(busy, MICROSECOND)
    on_communication = streams == {COMMUNICATION_STREAM}
    alone = not any(begin < end and start < finish for begin, finish in compute)
    if on_communication:
        is_all_to_all = kernels[0]["kind"] == "a2a"
        sms = COMMUNICATION_SMS if is_all_to_all or not alone else COMPUTE_SMS + COMMUNICATION_SMS
    else:
        sms = COMPUTE_SMS
    return Launch(operator, slot, start, seconds, sms, min(share, 1.0), len(kernels))


def helped(
    kernel: dict[str, str],
    mapping: Mapping[str, Any],
    joined: Mapping[tuple[int, str], Launch],
) -> tuple[int, str]:
    """The launch that a helper kernel belongs to: the latest earlier one of a kind it names."""
    operator = kernel["logical_op"]
    kinds = mapping["helpers"][operator]
    candidates = [
        (launch.start, key)
        for key, launch in joined.items()
        if launch.slot == int(kernel["slot"])
        and launch.operator[0] == operator[0]
        and mapping["operators"][launch.operator]["kind"] in kinds
        and launch.start <= start_of(kernel)
    ]
    if not candidates:
        raise ValueError(f"deepseek_training_trace.yaml: nothing before the helper {operator!r}")
    return max(candidates)[1]


def kernel_gap(kernels: list[dict[str, str]]) -> Seconds:
    """Median idle time between two kernels of the compute stream."""
    stream = sorted(
        (start_of(kernel), end_of(kernel))
        for kernel in kernels
        if int(kernel["stream"]) == COMPUTE_STREAM
    )
    return statistics.median(
        max(0.0, later[0] - earlier[1]) for earlier, later in itertools.pairwise(stream)
    )


def start_of(kernel: dict[str, str]) -> Seconds:
    """Start of a kernel within the trace."""
    return float(kernel["start_us"]) * MICROSECOND


def duration_of(kernel: dict[str, str]) -> Seconds:
    """Duration of a kernel."""
    return float(kernel["dur_us"]) * MICROSECOND


def end_of(kernel: dict[str, str]) -> Seconds:
    """End of a kernel within the trace."""
    return start_of(kernel) + duration_of(kernel)


# -- benchmark tables ------------------------------------------------------------------------------


def dense_gemm(path: Path) -> Iterator[Measurement]:
    """InferSim's FP8 GEMMs: kernel only, all SMs."""
    for row in read_table(path):
        sizes = {name: int(row[name]) for name in ("m", "n", "k")}
        yield benchmark(
            "gemm",
            sizes,
            seconds=float(row["latency_us"]) * MICROSECOND,
            source=f"alibaba/InferSim bench_data/gemm/h800/data.csv ({path.name})",
            conditions={"set": "infersim", "out_dtype": "bfloat16"},
        )


def _grouped_gemm(path: Path, *, kind: str) -> Iterator[Measurement]:
    """InferSim's expert GEMMs, with the rows that were really drawn."""
    peak = load_gpu(GPU).peak_compute["fp8_e4m3"]
    projections = {
        "up_proj_us": ("up_mfu", 2 * EXPERT_INTERMEDIATE, HIDDEN),
        "down_proj_us": ("down_mfu", HIDDEN, EXPERT_INTERMEDIATE),
    }
    for row in read_table(path):
        groups = int(row["num_local_experts"])
        for latency, (utilisation, n, k) in projections.items():
            seconds = float(row[latency]) * MICROSECOND
            rows = round(float(row[utilisation]) * peak * seconds / (2 * n * k))
            yield benchmark(
                kind,
                {"rows": rows, "n": n, "k": k, "groups": groups},
                seconds=seconds,
                source=f"alibaba/InferSim bench_data/grouped_gemm ({path.name})",
                conditions={
                    "set": "infersim",
                    "out_dtype": "bfloat16",
                    "rows": "recovered from mfu",
                },
            )


def mla_prefill(path: Path) -> Iterator[Measurement]:
    """InferSim's decompressed causal attention of one sequence, FLOPs of half the square."""
    for row in read_table(path):
        length = int(row["seq_len"])
        sizes = {
            "sequences": 1,
            "query_length": length,
            "kv_length": length,
            "heads": HEADS,
            "qk_dim": NOPE + ROPE,
            "v_dim": VALUE,
        }
        yield benchmark(
            "attention_forward",
            sizes,
            dtype="bfloat16",
            seconds=float(row["latency_us"]) * MICROSECOND,
            source=f"alibaba/InferSim bench_data/mla/prefill/h800 ({path.name})",
            conditions={"set": "infersim", "out_dtype": "bfloat16"},
        )


def _mla_decode(path: Path) -> Iterator[Measurement]:
    """InferSim's absorbed decode: FlashInfer, page size 1."""
    for row in read_table(path):
        conditions = {"set": "infersim", "out_dtype": "bfloat16", "page_size": "1"}
        if row["kv_dtype"] != "bf16":
            conditions["kv_dtype"] = row["kv_dtype"]
        yield benchmark(
            "mla_decode",
            decode_sizes(int(row["batch_size"]), int(row["kv_len"])),
            dtype="bfloat16",
            seconds=float(row["latency_us"]) * MICROSECOND,
            source=f"alibaba/InferSim bench_data/mla/decode/h800, FlashInfer ({path.name})",
            conditions=conditions,
        )


# -- published figures -----------------------------------------------------------------------------


def deepgemm() -> Iterator[Measurement]:
    """DeepGEMM's published rates, turned into times."""
    conditions = {"set": "deepgemm_2025_03", "out_dtype": "bfloat16"}
    for (m, n, k), rate in DEEPGEMM_DENSE.items():
        yield benchmark(
            "gemm",
            {"m": m, "n": n, "k": k},
            seconds=2 * m * n * k / (rate * TERAFLOPS),
            source=DEEPGEMM,
            conditions=conditions,
        )
    tables = {"grouped_gemm": DEEPGEMM_GROUPED, "masked_grouped_gemm": DEEPGEMM_MASKED}
    for kind, table in tables.items():
        for (groups, per_group, n, k), rate in table.items():
            rows = groups * per_group
            yield benchmark(
                kind,
                {"rows": rows, "n": n, "k": k, "groups": groups},
                seconds=2 * rows * n * k / (rate * TERAFLOPS),
                source=DEEPGEMM,
                conditions=conditions,
            )


def deepep() -> Iterator[Measurement]:
    """DeepEP's published bandwidths, turned into times by the bytes that DeepEP counts.

    Bytes are those of each token once for each node it reaches (one node: each GPU), own included.
    """
    reach = load_calibration(GPU).all_to_all
    tokens = 4096
    payload = {"dispatch": HIDDEN + HIDDEN // 128 * 4, "combine": 2 * HIDDEN}
    dtypes = {"dispatch": "fp8_e4m3", "combine": "bfloat16"}
    for name, table in DEEPEP_NORMAL.items():
        for nodes, rates in table.items():
            copies = reach.nodes_per_token[nodes] if nodes > 1 else reach.ranks_per_token[nodes]
            for kind, rate in zip(("dispatch", "combine"), rates, strict=True):
                sizes = {
                    "hidden": HIDDEN,
                    "rows": round(tokens * reach.ranks_per_token[nodes]),
                    "tokens": tokens,
                    "top_k": 8 if kind == "dispatch" else 0,
                }
                conditions = {
                    "set": name,
                    "out_dtype": dtypes[kind],
                    "nodes": str(nodes),
                    "nic": NIC,
                }
                yield Measurement(
                    kind=kind,
                    sizes=tuple(sorted(sizes.items())),
                    dtype=dtypes[kind],
                    sms=DEEPEP_SMS,
                    seconds=tokens * copies * payload[kind] / (rate * GIGABYTES),
                    spread=None,
                    source=f"{DEEPEP} ({DEEPEP_SOURCE[name]})",
                    conditions=tuple(sorted(conditions.items())),
                )


def flashmla() -> Measurement:
    """FlashMLA's published compute-bound rate, at sizes where it is compute-bound."""
    sizes = decode_sizes(FLASHMLA_SEQUENCES, FLASHMLA_LENGTH)
    flops = 2 * FLASHMLA_SEQUENCES * HEADS * FLASHMLA_LENGTH * (2 * LATENT + ROPE)
    return benchmark(
        "mla_decode",
        sizes,
        dtype="bfloat16",
        seconds=flops / (FLASHMLA_RATE * TERAFLOPS),
        source=FLASHMLA,
        conditions={"set": "flashmla_2025_04", "out_dtype": "bfloat16", "sizes": "assumed"},
    )


# -- shared by the above ---------------------------------------------------------------------------


def decode_sizes(sequences: int, kv_length: int) -> dict[str, int]:
    """Sizes of one absorbed decode step of V3, one new token per sequence."""
    return {
        "sequences": sequences,
        "query_length": 1,
        "kv_length": kv_length,
        "heads": HEADS,
        "latent_dim": LATENT,
        "rope_dim": ROPE,
    }


def benchmark(
    kind: str,
    sizes: Mapping[str, int],
    *,
    seconds: Seconds,
    source: str,
    conditions: Mapping[str, str],
    dtype: str = "fp8_e4m3",
) -> Measurement:
    """One row of a kernel that had the whole GPU."""
    return Measurement(
        kind=kind,
        sizes=tuple(sorted(sizes.items())),
        dtype=dtype,
        sms=load_gpu(GPU).sms,
        seconds=seconds,
        spread=None,
        source=source,
        conditions=tuple(sorted(conditions.items())),
    )


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header. Raises ValueError where it is not there."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


if __name__ == "__main__":
    main()
