"""Fitted kernel times, for tests of what they rest on."""

import dataclasses

from hardware_profiles.schema import load_calibration, load_cluster
from reference_model.trace import Operator
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements
from simulator.hardware.network.fabric_load import NO_LIMIT

CALIBRATION = load_calibration("h800_sxm", {"restated_from": []})
"""Its own rows only; what it takes over from an H200 is a test of its own."""


ROWS = calibration_measurements(CALIBRATION)


MICROSECOND = 1e-6


def fitted(overrides=None, *, ranks=64, calibration=CALIBRATION, rows=ROWS):
    cluster = load_cluster("h800_2048", overrides)
    return KernelCostModel(
        cluster=cluster, calibration=calibration, expert_parallel_ranks=ranks
    ).fit(rows)


COSTS = fitted()


def operator(kind, *, dtype="fp8_e4m3", out_dtype="bfloat16", accumulate=False, **sizes):
    return Operator(
        name=kind,
        kind=kind,
        phase="forward",
        segment="mlp",
        dtype=dtype,
        out_dtype=out_dtype,
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=accumulate,
    )


def gemm(m, n, k, **types):
    return operator("gemm", m=m, n=n, k=k, **types)


def dispatch(tokens=4096, received=None, top_k=8):
    rows = round(tokens * 7.49) if received is None else received
    return operator(
        "dispatch", out_dtype="fp8_e4m3", tokens=tokens, rows=rows, hidden=7168, top_k=top_k
    )


def combine(tokens=4096, received=None):
    rows = round(tokens * 7.49) if received is None else received
    return operator("combine", dtype="bfloat16", tokens=tokens, rows=rows, hidden=7168, top_k=0)


def one(costs, op, *, sms, overlapped):
    prediction = costs.predict([op], sms=sms, overlapped=overlapped, load=NO_LIMIT)
    return float(prediction.seconds[0]), prediction.provenance_names()[0]


WITHOUT_TRACE = fitted(
    calibration=load_calibration("h800_sxm", {"kernel_sets": ["infersim"], "restated_from": []}),
    rows=[row for row in ROWS if row.kind == "gemm"],
)


def bfloat16(op):
    return dataclasses.replace(op, dtype="bfloat16")
