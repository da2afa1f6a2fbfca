"""What a figure of a run is: unit, meaning, which way is better, and what people call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

STATISTICS = frozenset({"mean", "p50", "p90", "p95", "p99"})
"""Last parts of a path that are of the figure before them: "ttft_s.mean"."""

_UNITS_IN_NAMES = ("_bytes_per_s", "_s", "_bytes")
"""How a name says its unit; words leave it to the unit."""

_WORDS: Mapping[str, str] = {
    "gpu": "GPU",
    "gpus": "GPUs",
    "cpu": "CPU",
    "kv": "KV",
    "hbm": "HBM",
    "nic": "NIC",
    "sms": "SMs",
    "usd": "(USD)",
    "mfu": "MFU",
    "tflops": "TFLOP/s",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "end to end",
    "nvlink": "NVLink",
    "littles": "Little's",
    "causal": "(causal)",
    "all": "all",
}
"""Words of names that people write otherwise."""

_NAMES: Mapping[str, str] = {
    "mfu_non_causal": "MFU (non-causal)",
    "tflops_per_gpu_non_causal": "TFLOP/s per GPU (non-causal)",
    "weight_s": "weight gradient",
    "overlapped_s": "overlapped pairs",
    "gpu_hours": "GPU hours",
    "gpu_hours_per_trillion_tokens": "GPU hours per trillion tokens",
    "e2e_s": "end to end",
    "goodput_requests_per_second": "goodput, requests per second",
    "cost_usd": "cost",
    "cost_usd_per_trillion_tokens": "cost per trillion tokens",
    "cost_usd_per_million_output_tokens": "cost per million output tokens",
    "usd_per_gpu_second": "rent per GPU",
    "usd_per_million_tokens": "USD per million tokens",
    "watts_per_gpu": "power of a GPU's board",
}
"""Names of which the words alone make no good label."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a run."""

    name: str
    unit: str
    """SI, or what is counted; "share" of one, "ratio"; empty where it has none of its own."""
    better: Literal["less", "more"] | None
    """None where neither is."""
    meaning: str
    leads: bool = False
    """Whether tables and pages of a run begin with it, in the order of its job's metrics."""

    @property
    def label(self) -> str:
        """What people call it: "step time", "tokens per second per GPU"."""
        return label_of(self.name)


def label_of(path: str) -> str:
    """What people call the figure at a path of a run's JSON: "TTFT, p99", "rank 0, forward"."""
    *before, last = path.split(".")
    if before and last in STATISTICS:
        return f"{label_of('.'.join(before))}, {last}"
    groups: list[str] = []
    for part in (*before, last):
        if part.isdigit() and groups:
            groups[-1] = f"{groups[-1].removesuffix('s')} {part}"
        else:
            groups.append(_named(part))
    return ", ".join(groups)


def heading_of(path: str) -> str:
    """The same with a capital letter, as it stands by itself."""
    label = label_of(path)
    return f"{label[:1].upper()}{label[1:]}"


def _named(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    ending = next((one for one in _UNITS_IN_NAMES if name.endswith(one)), "")
    plain = name.removesuffix(ending) if name != ending else name
    return " ".join(_WORDS.get(word, word) for word in plain.split("_") if word)
