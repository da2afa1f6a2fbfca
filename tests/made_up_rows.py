"""Rows of made-up measurements, for tests of calibrations."""

import math

import numpy as np

from hardware_profiles.schema import load_calibration
from hardware_profiles.tables import Measurement
from simulator.calibration.family_fit import HeldOutRow

BASE = load_calibration("h800_sxm")


def row(m, n, k, seconds, kernel_set="made_up"):
    return Measurement(
        kind="gemm",
        sizes=(("k", k), ("m", m), ("n", n)),
        dtype="fp8_e4m3",
        sms=132,
        seconds=seconds,
        spread=None,
        source="made up",
        conditions=(("out_dtype", "bfloat16"), ("set", kernel_set)),
    )


def made_up(*, noise=0.0, seed=0, kernel_set="made_up", slower=1.0):
    """A kernel that reaches 60% of the peak beyond a launch of 5 us."""
    rng = np.random.default_rng(seed)
    return [
        row(
            m, n, k,
            slower * (5e-6 + 2 * m * n * k / (0.6 * 1979e12)) * math.exp(noise * rng.normal()),
            kernel_set,
        )
        for m in (256, 512, 1024, 2048, 4096, 8192, 16384)
        for n in (1536, 4096, 7168, 24576)
        for k in (2048, 7168)
    ]  # fmt: skip


def held_out():
    """Two shapes of 30 rows each, 1% too slow, but one row by half; ends of a shape are edges."""
    made = []
    for n in (4096, 7168):
        for number in range(30):
            timed = row(64 * (number + 1), n, 2048, 1e-5 * (number + 1))
            wrong = 1.5 if (n, number) == (4096, 7) else 1.01
            made.append(HeldOutRow(timed, wrong * timed.seconds, number in (0, 29)))
    return made


def low_latency_row(kind, tokens, seconds, *, top_k=8, experts=256, **conditions):
    """A row of low-latency kernels among the GPUs of one node."""
    sizes = {"hidden": 7168, "rows": tokens * top_k, "tokens": tokens, "top_k": top_k}
    stated = {"layout": "low_latency", "nodes": "1", "experts": str(experts)} | conditions
    return Measurement(
        kind,
        tuple(sizes.items()),
        "fp8_e4m3" if kind == "dispatch" else "bfloat16",
        128,
        seconds,
        None,
        "made up",
        tuple(sorted(stated.items())),
    )


def low_latency_rows(
    *, dispatch=(16e-6, 8e-8), combine=(18e-6, 14e-8), tokens=(1, 32, 64, 128, 256), **changed
):
    """Rows on a line of each direction: (seconds of no tokens, of each)."""
    lines = {"dispatch": dispatch, "combine": combine}
    return [
        low_latency_row(kind, count, start + each * count, **changed)
        for kind, (start, each) in lines.items()
        for count in tokens
    ]
