"""Kernel costs: what was measured is met, what was not obeys physics, and each says which it is."""

import dataclasses
from contextlib import nullcontext
from functools import cache
from operator import attrgetter

import numpy as np
import pytest
from cost_models import (
    CALIBRATION,
    COSTS,
    MICROSECOND,
    ROWS,
    WITHOUT_TRACE,
    dispatch,
    fitted,
    gemm,
    one,
    operator,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.schema import load_calibration, load_cluster, load_gpu
from reference_model.trace import KINDS, TRACE_FOLDER, Workload, load_trace
from simulator.hardware.costs import COST_MODELS, KernelCostModel, NotCalibrated
from simulator.hardware.kernels.families import calibration_measurements, operator_of
from simulator.hardware.kernels.roofline import batch_of, is_tensor, least_seconds
from simulator.hardware.kernels.work_floor import PADDED
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, PROVENANCES

H800 = load_gpu("h800_sxm")
ROUNDING = 1e-9


TRACE = load_trace(TRACE_FOLDER / "deepseek_v3.train.jsonl")
LOAD = Workload(
    tokens=4096,
    context=4096,
    sequences=1,
    expert_rows=32768,
    received_rows=30679,
    local_experts=4,
)


def operators_of(trace, load):
    return sorted(
        {op for layer, phase in trace.templates for op in trace.operators(layer, phase, load)},
        key=lambda op: (op.kind, op.sizes, op.name, op.phase),
    )


MODEL_OPERATORS = operators_of(TRACE, LOAD)
DECODE_OPERATORS = operators_of(
    load_trace(TRACE_FOLDER / "deepseek_v3.decode.jsonl"),
    Workload(
        tokens=128,
        context=4096,
        sequences=128,
        expert_rows=1024,
        received_rows=1024,
        local_experts=9,
    ),
)


@pytest.mark.parametrize(("sms", "possible"), [(0, False), (1, True), (132, True), (133, False)])
def test_a_kernel_runs_on_one_sm_up_to_all(sms, possible):
    sizes = {"m": np.array([64]), "n": np.array([7168]), "k": np.array([2048])}
    types = {"dtype": "fp8_e4m3", "out_dtype": "bfloat16"}
    with nullcontext() if possible else pytest.raises(ValueError, match="allowed: 1 to 132"):
        told = COSTS.predict_sizes("gemm", sizes, **types, sms=sms, overlapped=False)
        assert told.seconds.shape == (1,)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("gemn", "mnk"), ("gemm", "mn"), ("dispatch", ("tokens", "rows", "hidden", "top_k"))],
)
def test_sizes_of_what_is_no_compute_kernel_of_theirs_are_refused(kind, names):
    sizes = {name: np.array([64]) for name in names}
    types = {"dtype": "fp8_e4m3", "out_dtype": "bfloat16"}
    with pytest.raises(ValueError, match="allowed: a compute kernel and the sizes of its kind"):
        COSTS.predict_sizes(kind, sizes, **types, sms=132, overlapped=False)


@pytest.mark.parametrize("name", sorted(COST_MODELS))
@pytest.mark.parametrize(("sms", "overlapped"), [(112, True), (132, False), (108, True)])
def test_every_operator_of_the_model_gets_a_time_an_interval_and_a_provenance(
    name, sms, overlapped
):
    costs = COST_MODELS[name](
        cluster=load_cluster("h800_2048"), calibration=CALIBRATION, expert_parallel_ranks=64
    ).fit(ROWS)
    prediction = costs.predict(MODEL_OPERATORS, sms=sms, overlapped=overlapped, load=NO_LIMIT)
    assert (prediction.low > 0).all()
    assert (prediction.low <= prediction.seconds).all()
    assert (prediction.seconds <= prediction.high).all()
    assert np.isfinite(prediction.high).all()
    assert set(prediction.provenance_names()) <= set(PROVENANCES)


@pytest.mark.parametrize(("sms", "overlapped"), [(112, True), (132, False)])
def test_no_prediction_is_below_the_roofline_at_peak(sms, overlapped):
    gpu = COSTS.cluster.node.gpu
    for op in MODEL_OPERATORS:
        if op.kind not in {"dispatch", "combine"}:
            prediction = COSTS.predict([op], sms=sms, overlapped=overlapped, load=NO_LIMIT)
            least = least_seconds(batch_of([op]), np.array([float(sms)]), gpu, memory_share=1.0)
            assert prediction.low[0] >= least[0] * (1 - 1e-12), op.name


def test_a_row_of_the_table_is_met_exactly_and_says_measured():
    rows = [row for row in ROWS if row.condition("pair") == "yes"]
    operators = [
        operator(
            row.kind,
            dtype=row.dtype,
            out_dtype=row.out_dtype,
            accumulate=row.condition("accumulate") == "yes",
            **dict(row.sizes),
        )
        for row in rows
    ]
    prediction = COSTS.predict(operators, sms=112, overlapped=True, load=NO_LIMIT)
    # Six rows took longer than others of more rows, and take as long as those.
    noise = prediction.provenance != MEASURED
    beaten = [
        (row.kind, dict(row.sizes)["rows"], row.seconds, found)
        for row, found in zip(
            np.array(rows, dtype=object)[noise], prediction.seconds[noise], strict=True
        )
    ]
    assert beaten == [
        ("grouped_gemm", 30976, pytest.approx(997e-6), pytest.approx(979e-6, rel=1e-4)),
        ("grouped_quantize_transpose", 32512, pytest.approx(94e-6), pytest.approx(77e-6, rel=1e-4)),
        ("grouped_quantize_transpose", 32896, pytest.approx(179e-6), pytest.approx(176e-6)),
        ("quantize", 32512, pytest.approx(208e-6), pytest.approx(188e-6, rel=1e-4)),
        ("quantize", 34688, pytest.approx(228e-6), pytest.approx(197e-6, rel=1e-4)),
        (
            "weighted_swiglu_forward_backward",
            32512,
            pytest.approx(340e-6),
            pytest.approx(321e-6, rel=1e-4),
        ),
    ]
    assert (prediction.provenance[noise] == INTERPOLATED).all()
    measured = np.array([row.seconds for row in rows])[~noise]
    assert prediction.seconds[~noise] == pytest.approx(measured, rel=2e-3)


@pytest.mark.parametrize(
    ("op", "microseconds"),
    [
        (gemm(4096, 1536, 7168), 103.5),
        (gemm(4096, 576, 7168), 53.25),
        (gemm(4096, 24576, 1536), 372.5),
        (gemm(4096, 32768, 512), 244.25),
        (gemm(4096, 7168, 16384), 900.75),
        (gemm(4096, 4096, 7168), 259.0),
        (gemm(4096, 7168, 2048), 138.0),
        (gemm(4096, 2048, 7168), 126.25),
        (gemm(4096, 16384, 7168), 927.0),
        (gemm(4096, 1536, 24576), 332.0),
        (gemm(4096, 512, 32768), 220.0),
        (gemm(7168, 16384, 4096, out_dtype="float32", accumulate=True), 1499.0),
        (gemm(24576, 1536, 4096, out_dtype="float32", accumulate=True), 462.0),
    ],
)
def test_the_gemms_of_the_published_pair_have_its_mean_times(op, microseconds):
    # deepseek-ai/profile-data, train.json: mean over its four slots, recomputation included
    seconds, provenance = one(COSTS, op, sms=112, overlapped=True)
    assert provenance == "measured"
    assert seconds == pytest.approx(microseconds * MICROSECOND, rel=1e-3)


def test_provenance_is_honest():
    assert one(COSTS, gemm(4096, 1536, 7168), sms=112, overlapped=True)[1] == "measured"
    # between two rows of the same n and k
    assert one(COSTS, gemm(2048, 1536, 7168), sms=112, overlapped=True)[1] == "interpolated"
    # the same shape at an SM count between 112 and 132, and beyond both
    assert one(COSTS, gemm(4096, 1536, 7168), sms=120, overlapped=True)[1] == "interpolated"
    assert one(COSTS, gemm(4096, 1536, 7168), sms=64, overlapped=True)[1] == "extrapolated"
    # beyond the rows, and a shape of which there is none
    assert one(COSTS, gemm(131072, 1536, 7168), sms=112, overlapped=True)[1] == "extrapolated"
    assert one(COSTS, gemm(4096, 12345, 777), sms=112, overlapped=True)[1] == "extrapolated"
    # no row of the kind at all
    loss = operator("cross_entropy", dtype="bfloat16", rows=4096, columns=129280)
    assert one(COSTS, loss, sms=132, overlapped=False)[1] == "modelled"


def test_on_another_gpu_nothing_counts_as_measured():
    costs = fitted({"node.gpu": "h200_sxm"})
    prediction = costs.predict(MODEL_OPERATORS, sms=112, overlapped=True, load=NO_LIMIT)
    assert (prediction.provenance >= EXTRAPOLATED).all()


def test_an_operator_of_many_small_kernels_does_not_shrink_with_its_tokens():
    # the gate's 37 kernels take 335 us for 4,096 tokens, most of it to launch
    def gate(tokens):
        return operator(
            "gate", dtype="float32", out_dtype="float32", tokens=tokens, experts=256, top_k=8
        )

    full, provenance = one(COSTS, gate(4096), sms=112, overlapped=True)
    assert provenance == "measured"
    assert full == pytest.approx(334.5 * MICROSECOND, rel=0.01)
    assert one(COSTS, gate(2048), sms=112, overlapped=True)[0] > 0.9 * full


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1536, 7168), (7168, 16384), (32768, 512), (2048, 7168), (5000, 3000)]),
    m=st.lists(st.integers(1, 40000), min_size=2, max_size=40),
    sms=st.sampled_from([108, 112, 132]),
    overlapped=st.booleans(),
)
def test_more_tokens_never_take_less_time(shape, m, sms, overlapped):
    n, k = shape
    operators = [gemm(rows, n, k) for rows in sorted(m)]
    seconds = COSTS.predict(operators, sms=sms, overlapped=overlapped, load=NO_LIMIT).seconds
    assert (np.diff(seconds) >= -1e-12).all()


CLUSTER_OF = {
    "b200_sxm": "b200_32",
    "b200_sxm_reference": "b200_32",
    "gb200": "gb200_nvl72",
    "gb200_reference": "gb200_nvl72",
    "h100_sxm": "h100_96",
    "h100_sxm_reference": "h100_96",
    "h200_sxm": "h200_8",
    "h200_sxm_reference": "h200_8",
    "h20_sxm": "h20_32",
    "h800_decode": "h800_2048",
    "h800_sxm": "h800_2048",
    "h800_without_trace": "h800_2048",
}


@cache
def shipped(calibration, **changes):
    profile = load_calibration(calibration)
    overrides = {f"node.{path.replace('__', '.')}": value for path, value in changes.items()}
    return KernelCostModel(
        cluster=load_cluster(CLUSTER_OF[calibration], overrides),
        calibration=profile,
        expert_parallel_ranks=8,
    ).fit(calibration_measurements(profile))


PRODUCTS = [
    ("gemm", ("fp8_e4m3", "bfloat16", False), {}),
    ("gemm", ("bfloat16", "bfloat16", False), {}),
    ("gemm", ("bfloat16", "float32", False), {}),
    ("gemm", ("fp8_e4m3", "float32", True), {}),
    ("grouped_gemm", ("fp8_e4m3", "bfloat16", False), {"groups": 8}),
    ("grouped_gemm_weight_grad", ("fp8_e4m3", "float32", True), {"groups": 8, "m": 4096}),
    ("masked_grouped_gemm", ("fp8_e4m3", "bfloat16", False), {"groups": 9}),
    ("batched_gemm", ("bfloat16", "bfloat16", False), {"batch": 128}),
]


def standing_above_more_rows(prediction):
    """Places, rows ascending, that take longer than one of more rows: measured rows alone, and only
    where that is faster than even the low end of what their own repeats allow."""
    seconds = prediction.seconds
    least = np.minimum.accumulate(seconds[::-1])[::-1]
    above = seconds > least * (1.0 + ROUNDING)
    assert (prediction.provenance[above] == MEASURED).all()
    assert (prediction.low[above] > least[above]).all()
    return np.flatnonzero(above)


# (kind, operands, n, k, rows, microseconds of the row in the table)
STANDING_PRODUCTS = {
    "h100_sxm_reference": [
        ("gemm", "fp8_e4m3", 1536, 7168, 16, 17.3772),
        ("gemm", "fp8_e4m3", 7168, 2048, 16, 11.4007),
        ("gemm", "fp8_e4m3", 7168, 2048, 32, 10.5187),
        ("gemm", "bfloat16", 256, 7168, 16, 7.06963),
    ],
    "h200_sxm_reference": [
        ("gemm", "fp8_e4m3", 1536, 7168, 16, 17.3606),
        ("gemm", "fp8_e4m3", 1536, 7168, 32, 16.8),
        ("gemm", "fp8_e4m3", 7168, 2048, 16, 11.1455),
        ("gemm", "fp8_e4m3", 7168, 2048, 32, 10.4302),
        ("gemm", "bfloat16", 256, 7168, 16, 7.08393),
        ("gemm", "bfloat16", 129280, 7168, 64, 495.643),
    ],
    "h800_decode": [
        ("gemm", "bfloat16", 256, 7168, 16, 7.48410),
        ("gemm", "bfloat16", 129280, 7168, 64, 686.820),
    ],
}


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("calibration", sorted(CLUSTER_OF))
def test_no_product_but_a_measured_one_takes_longer_than_one_of_more_rows(calibration, overlapped):
    costs = shipped(calibration)
    sms = costs.cluster.node.gpu.sms - (20 if overlapped else 0)
    rng = np.random.default_rng(0)
    some = np.exp2(rng.uniform(0, 17, 400)).astype(np.int64)
    rows = np.unique(np.concatenate([np.arange(1, 300), some]))
    standing = []
    for kind, (dtype, out_dtype, accumulate), others in PRODUCTS:
        for n, k in ((256, 7168), (1536, 7168), (7168, 2048), (129280, 7168)):
            sizes = {PADDED[kind]: rows, "n": np.full_like(rows, n), "k": np.full_like(rows, k)}
            sizes |= {name: np.full_like(rows, value) for name, value in others.items()}
            prediction = costs.predict_sizes(
                kind,
                {name: sizes[name] for name in KINDS[kind].sizes},
                dtype=dtype,
                out_dtype=out_dtype,
                accumulate=accumulate,
                sms=sms,
                overlapped=overlapped,
            )
            standing += [
                (kind, dtype, n, k, rows[place], prediction.seconds[place] / MICROSECOND)
                for place in standing_above_more_rows(prediction)
            ]
    # Rows were measured alone.
    expected = [] if overlapped else STANDING_PRODUCTS.get(calibration, [])
    assert sorted(standing) == [
        (*product, pytest.approx(microseconds, rel=1e-9))
        for *product, microseconds in sorted(expected)
    ]


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("calibration", sorted(CLUSTER_OF))
def test_no_product_of_any_calibration_takes_longer_on_more_sms_than_were_measured(
    calibration, overlapped
):
    costs = shipped(calibration, gpu__sms=160)
    some = [
        operator(
            kind,
            dtype=dtype,
            out_dtype=out_dtype,
            accumulate=accumulate,
            **{
                size: (others | {PADDED[kind]: m, "n": n}).get(size, k)
                for size in KINDS[kind].sizes
            },
        )
        for kind, (dtype, out_dtype, accumulate), others in PRODUCTS
        for n, k in ((256, 7168), (1536, 7168), (4096, 7168), (7168, 2048), (129280, 7168))
        for m in (1, 100, 128, 256, 333, 1120, 2100, 4096)
    ]
    # Rows of its own were measured on all SMs of the GPU, restated ones on 132.
    own = costs.calibration.measurements
    measured = load_gpu(costs.calibration.gpu).sms if own else 132
    counts = [sms for sms in (132, 133, 136, 140, 144, 148, 152, 156, 160) if sms >= measured]
    times = np.array(
        [costs.predict(some, sms=sms, overlapped=overlapped).seconds for sms in counts]
    )
    assert (np.diff(times, axis=0) <= ROUNDING * times[1:]).all()


def test_on_more_sms_than_were_measured_a_product_saves_the_waves_of_its_tiles():
    # 4,096 x 7,168 outputs in tiles of 128 x 128: 1,792 tiles are 14 waves of 132 or 133 SMs, 13 of
    # 140 or 148, 12 of 160. A tile is 128 x 128 x 2,048 multiply-adds; the peak is 1,979 TFLOP/s of
    # 132 SMs, of which the fastest measured product reaches a share.
    costs = shipped("h200_sxm_reference", gpu__sms=160)
    reached = shipped("h200_sxm_reference").kernels_.own.achieved.compute["fp8_e4m3"]
    wave = 2 * 128 * 128 * 2048 / (1979e12 / 132) / reached
    product = gemm(4096, 7168, 2048)
    measured = one(shipped("h200_sxm_reference"), product, sms=132, overlapped=False)[0]
    for sms, saved in ((132, 0), (133, 0), (140, 1), (148, 1), (160, 2)):
        seconds = one(costs, product, sms=sms, overlapped=False)[0]
        assert seconds == pytest.approx(measured - saved * wave, rel=1e-9)


def test_bytes_take_as_long_on_more_sms():
    head = gemm(1, 129280, 7168)
    costs = shipped("h200_sxm_reference", gpu__sms=160)
    times = [one(costs, head, sms=sms, overlapped=False)[0] for sms in (132, 148, 160)]
    assert times == pytest.approx([times[0]] * 3, rel=1e-12)


def test_a_cast_of_few_rows_that_was_measured_slower_takes_the_time_of_more_within_its_repeats():
    # 2.7512 us for 64 rows of 1,536, 2.7473 us for 128, 0.1% less; a cast timed again is off by
    # 1.2816 x hypot(1.09%, 40 ns / 2.7512 us = 1.45%) = 2.3%, and its repeats add to it.
    times = [
        one(
            shipped("h800_decode"),
            operator("quantize", dtype="bfloat16", out_dtype="fp8_e4m3", rows=rows, columns=1536),
            sms=132,
            overlapped=False,
        )[0]
        for rows in (63, 64, 128)
    ]
    assert times[1:] == pytest.approx([2.7473e-6, 2.7473e-6], rel=1e-12)
    assert times[0] <= times[2]


# (kind, rows, microseconds of the row in the table)
STANDING_KERNELS = {
    "h100_sxm": [("gate", 64, 4.04267)],
    "h100_sxm_reference": [("gate", 64, 4.04267)],
}


@pytest.mark.parametrize("calibration", sorted(CLUSTER_OF))
def test_no_memory_bound_kernel_but_a_measured_one_takes_longer_than_one_of_more_rows(calibration):
    costs = shipped(calibration)
    standing = []
    rows = (1, 2, 3, 6, 12, 24, 40, 64, 100, 256, 1000, 4096, 10000)
    for kind, op in {
        op.kind: op
        for op in MODEL_OPERATORS + DECODE_OPERATORS
        if op.kind in PADDED and op.kind not in {"dispatch", "combine"} and not is_tensor(op.kind)
    }.items():
        sizes = [dict(op.sizes) | {PADDED[kind]: count} for count in rows]
        some = [dataclasses.replace(op, sizes=tuple(sorted(each.items()))) for each in sizes]
        prediction = costs.predict(some, sms=costs.cluster.node.gpu.sms, overlapped=False)
        standing += [
            (kind, rows[place], prediction.seconds[place] / MICROSECOND)
            for place in standing_above_more_rows(prediction)
        ]
    assert standing == [
        (kind, count, pytest.approx(microseconds, rel=1e-9))
        for kind, count, microseconds in STANDING_KERNELS.get(calibration, [])
    ]


def test_a_product_of_few_rows_that_was_measured_slower_than_one_of_more_takes_no_longer():
    # InferSim's table: 16.443 us for 16 rows, 10.881 us for 64, 11.714 us for 128, in one shape.
    few = [one(WITHOUT_TRACE, gemm(m, 1536, 7168), sms=132, overlapped=False) for m in (16, 64)]
    assert few[0][0] == few[1][0]
    assert few[0][0] < np.mean([16.443, 10.881]) * MICROSECOND


def test_bytes_come_no_faster_than_the_fastest_measured_kernel_moves_them():
    # The head of one token in FP8, 129,280 x 7,168 weights. InferSim's fastest product moves 93.3%
    # of the H800's 3.35 TB/s: k = 36,864, n = 7,168 at 16 rows.
    table = [row for row in ROWS if row.kernel_set == "infersim"]
    fastest = max(
        batch_of([operator_of(row)]).moved_bytes[0] / row.seconds
        for row in table
        if batch_of([operator_of(row)]).moved_bytes[0] > 4 * H800.l2_capacity and row.kind == "gemm"
    )
    assert fastest / H800.hbm_bandwidth == pytest.approx(0.933, abs=5e-4)
    head = gemm(1, 129280, 7168)
    told = shipped("h800_decode").predict([head], sms=132, overlapped=False)
    assert told.low[0] == pytest.approx(batch_of([head]).moved_bytes[0] / fastest)


FASTER = [
    *[("h800_sxm", path, 2.0) for path in ("gpu__nvlink_bandwidth", "nic__bandwidth")],
    *[("h800_sxm", path, 2.0) for path in ("gpu__pcie_bandwidth", "gpu__hbm_bandwidth")],
    *[(name, "gpu__hbm_bandwidth", 2.0) for name in ("gb200", "h20_sxm", "h800_decode")],
    *[(name, "gpu__sm_clock", 1.1) for name in ("h800_sxm", "h200_sxm", "gb200")],
]


def faster(costs, path, times):
    """The overrides that make one part of a cluster so many times as fast."""
    part, field = path.split("__")
    value = times * getattr(getattr(costs.cluster.node, part), field)
    return {path: f"{value:.0f} {'Hz' if field == 'sm_clock' else 'B/s'}"}


def step_operators(costs):
    """What a training and a decode step issue, each operator with its SMs and condition."""
    total = costs.cluster.node.gpu.sms
    asked = []
    for op in MODEL_OPERATORS + DECODE_OPERATORS:
        for beside in (True, False) if op in MODEL_OPERATORS else (False,):
            compute = total - 20 if beside else total
            asked.append((op, 20 if op.kind in ("dispatch", "combine") else compute, beside))
    operators, sms, overlapped = zip(*asked, strict=True)
    return costs.predict(operators, sms=sms, overlapped=overlapped, load=NO_LIMIT).seconds


@pytest.mark.parametrize(("calibration", "path", "times"), FASTER)
def test_a_faster_part_slows_no_operator_of_a_shipped_step(calibration, path, times):
    base = shipped(calibration)
    better = shipped(calibration, **faster(base, path, times))
    assert (step_operators(better) <= step_operators(base) * (1 + 1e-9)).all()


def test_at_half_the_clock_what_computes_takes_twice_as_long():
    slow = fitted({"node.gpu.sm_clock": "915 MHz"})
    op = gemm(4096, 7168, 16384)
    fast = one(COSTS, op, sms=112, overlapped=True)[0]
    assert one(slow, op, sms=112, overlapped=True)[0] == pytest.approx(2 * fast)
    # A cast of 8,192 x 7,168 values: 117 MB in BF16, 58.7 in FP8, and 1.8 of scales. Its bytes at
    # the fastest kernel's rate keep their time.
    cast = operator("quantize", dtype="bfloat16", out_dtype="fp8_e4m3", rows=8192, columns=7168)
    fast = one(COSTS, cast, sms=132, overlapped=False)[0]
    moving = batch_of([cast]).moved_bytes[0] / (
        COSTS.kernels_.own.achieved.memory * H800.hbm_bandwidth
    )
    assert one(slow, cast, sms=132, overlapped=False)[0] == pytest.approx(2 * fast - moving)


def test_what_was_asked_in_between_changes_no_answer():
    # A load on the fabric is an argument: nothing of it stays for who asks next.
    asked = {"sms": 112, "overlapped": True}
    first = COSTS.predict([dispatch()], load=NO_LIMIT, **asked)
    busy = FabricLoad(nic_stretch=2.0, bandwidth=10e9, latency=1e-4)
    assert COSTS.predict([dispatch()], load=busy, **asked).seconds[0] > first.seconds[0]
    again = COSTS.predict([dispatch()], load=NO_LIMIT, **asked)
    for figures in ("seconds", "low", "high"):
        assert getattr(again, figures).tolist() == getattr(first, figures).tolist()


def test_communication_sms_copy_at_their_clock():
    # Twice the SMs at half the clock copy as much; NICs and NVLink keep their time.
    slow = fitted({"node.gpu.sm_clock": "915 MHz"}).transfers_
    whole = COSTS.transfers_.explain(dispatch(), sms=10, overlapped=False, load=NO_LIMIT)
    half = slow.explain(dispatch(), sms=20, overlapped=False, load=NO_LIMIT)
    assert half.kernel_s == pytest.approx(whole.kernel_s, rel=1e-12)
    assert (half.nvlink_s, half.nic_s) == (whole.nvlink_s, whole.nic_s)
    # Without timed kernels five channels copy 90 GB/s at 18 GB/s each, half at half the clock.
    links = CALIBRATION.model_copy(update={"normal_kernels": "none"})
    for changes, times in ((None, 1), ({"node.gpu.sm_clock": "915 MHz"}, 2)):
        time = fitted(changes, calibration=links).transfers_.explain(
            dispatch(), sms=10, overlapped=False, load=NO_LIMIT
        )
        assert time.copy_s == pytest.approx(times * 4096 * 7.49 * 7392 / (5 * 23.3e9), rel=1e-3)


@pytest.mark.parametrize("calibration", ["h800_sxm", "h800_decode"])
def test_a_step_on_more_sms_takes_no_longer(calibration):
    counts = (100, 112, 128, 144, 160)
    sums = [step_operators(shipped(calibration, gpu__sms=sms)).sum() for sms in counts]
    assert sums == sorted(sums, reverse=True)
    # What computes on all SMs: 133 of them take 132 / 133 of the time at most, the bytes all of it.
    ratio = step_operators(shipped(calibration, gpu__sms=133)).sum()
    ratio /= step_operators(shipped(calibration)).sum()
    assert 132 / 133 < ratio < 1


@pytest.mark.parametrize(
    "path",
    [
        *(f"overlap.{kind}" for kind in ("gemm", "attention", "memory_bound")),
        *(f"all_to_all.beside_compute.{kind}" for kind in ("dispatch", "combine")),
    ],
)
def test_a_larger_slowdown_speeds_no_operator_up(path):
    def at(value):
        changes = {"value": value, "low": 1.0, "high": 2.0}
        calibration = load_calibration(
            "h800_sxm", {f"{path}.{name}": number for name, number in changes.items()}
        )
        return step_operators(fitted(calibration=calibration))

    stated = attrgetter(path)(CALIBRATION).value
    times = [at(value) for value in (1.0, stated, 1.9)]
    assert (times[0] <= times[1] * (1 + 1e-9)).all()
    assert (times[1] <= times[2] * (1 + 1e-9)).all()
    assert (times[0] < times[1]).any()
    # Alone, only what ran beside something in the trace rests on the ratio, and by what it held.
    assert times[1] == pytest.approx(step_operators(fitted(calibration=SHIPPED)), rel=1e-12)


SHIPPED = load_calibration("h800_sxm")


@pytest.mark.parametrize("op", [op for op in MODEL_OPERATORS if op.phase == "forward"][::7])
def test_fewer_sms_and_an_all_to_all_beside_it_never_speed_a_kernel_up(op):
    if op.kind in {"dispatch", "combine", "dispatch_layout"}:
        pytest.skip("runs on the communication SMs")
    alone, _ = one(COSTS, op, sms=132, overlapped=False)
    fewer, _ = one(COSTS, op, sms=112, overlapped=False)
    beside, _ = one(COSTS, op, sms=112, overlapped=True)
    assert alone <= fewer * (1 + 1e-9)
    assert fewer <= beside * (1 + 1e-9)


def test_another_kernel_set_of_the_same_shape_lies_inside_the_interval():
    prediction = COSTS.predict([gemm(4096, 1536, 7168)], sms=132, overlapped=False)
    assert prediction.low[0] <= 73.1 * MICROSECOND <= prediction.high[0]  # InferSim's row


def test_more_rows_routed_to_a_rank_take_longer():
    def rows(count):
        return operator("grouped_gemm", rows=count, n=4096, k=7168, groups=4)

    times = [
        one(COSTS, rows(count), sms=112, overlapped=True)[0] for count in (28672, 32768, 40960)
    ]
    assert times == sorted(times)
    assert times[2] / times[1] == pytest.approx(1.25, rel=0.06)
    assert one(COSTS, dispatch(received=40000), sms=20, overlapped=True) > one(
        COSTS, dispatch(), sms=20, overlapped=True
    )


def test_another_group_of_experts_has_transfers_of_its_own_and_changes_no_answer():
    before = one(COSTS, dispatch(), sms=20, overlapped=True)
    narrow = COSTS.of_group(8, sharing=None, reach=None)
    assert narrow.expert_parallel_ranks == 8
    assert one(narrow, dispatch(), sms=20, overlapped=True) == one(
        fitted(ranks=8), dispatch(), sms=20, overlapped=True
    )
    # Eight ranks are one node, whose tokens cross no NIC.
    assert one(narrow, dispatch(), sms=20, overlapped=True) < before
    assert one(COSTS, dispatch(), sms=20, overlapped=True) == before
    assert COSTS.expert_parallel_ranks == 64


def test_predictions_do_not_depend_on_the_company():
    together = COSTS.predict(MODEL_OPERATORS * 2, sms=112, overlapped=True, load=NO_LIMIT)
    count = len(MODEL_OPERATORS)
    assert (together.seconds[:count] == together.seconds[count:]).all()
    for index in range(0, count, 17):
        alone, provenance = one(COSTS, MODEL_OPERATORS[index], sms=112, overlapped=True)
        assert together.seconds[index] == pytest.approx(alone, rel=1e-12)
        assert together.provenance_names()[index] == provenance


@pytest.mark.parametrize(
    ("override", "ranks"),
    [
        ({"node.gpu.hbm_bandwidth": "6.7 TB/s"}, 64),
        ({"node.gpu.nvlink_bandwidth": "400 GB/s"}, 8),
        ({"node.nic.bandwidth": "800 Gbit/s"}, 64),
        ({"node.gpu.peak_compute.fp8_e4m3": "3958 TFLOP/s"}, 64),
    ],
)
def test_a_faster_part_never_slows_an_operator(override, ranks):
    faster = fitted(override, ranks=ranks).predict(
        MODEL_OPERATORS, sms=112, overlapped=True, load=NO_LIMIT
    )
    base = (
        fitted(ranks=ranks)
        .predict(MODEL_OPERATORS, sms=112, overlapped=True, load=NO_LIMIT)
        .seconds
    )
    faster = faster.seconds
    assert (faster <= base * (1 + 1e-9)).all()
    assert (faster < base).any()


# -- bad input -------------------------------------------------------------------------------------


def test_a_model_without_neighbours_shares_no_layer():
    machine = {"cluster": None, "calibration": CALIBRATION, "expert_parallel_ranks": 8}
    assert KernelCostModel(**machine).sharing == {}
    given = {"tensor": (2, 1)}
    assert KernelCostModel(**machine, sharing=given).sharing == given


def test_an_unfitted_model_says_so():
    costs = KernelCostModel(
        cluster=load_cluster("h800_2048"), calibration=CALIBRATION, expert_parallel_ranks=64
    )
    with pytest.raises(NotCalibrated, match="predict needs fit"):
        costs.predict([], sms=132, overlapped=False)


@pytest.mark.parametrize("sms", [0, 133, -1])
def test_an_sm_count_that_the_gpu_does_not_have_is_an_error(sms):
    with pytest.raises(ValueError, match=f"sms={sms} is not allowed: the GPU has 1 to 132"):
        COSTS.predict([gemm(1, 1, 1)], sms=sms, overlapped=False)


def test_one_condition_for_each_operator_or_one_for_all():
    with pytest.raises(ValueError, match="sms: 2 values for 1 operators"):
        COSTS.predict([gemm(1, 1, 1)], sms=[1, 2], overlapped=False)


def test_no_operators_give_an_empty_prediction():
    assert len(COSTS.predict([], sms=132, overlapped=False).seconds) == 0


def test_every_kind_is_either_tiled_or_bound_by_bytes():
    assert {kind for kind in KINDS if is_tensor(kind)} == {
        "gemm",
        "grouped_gemm",
        "masked_grouped_gemm",
        "grouped_gemm_weight_grad",
        "batched_gemm",
        "attention_forward",
        "attention_backward",
        "attention_masked_forward",
        "attention_masked_backward",
        "index_scores",
        "mla_decode",
        "mla_prefill",
        "sparse_mla",
    }
