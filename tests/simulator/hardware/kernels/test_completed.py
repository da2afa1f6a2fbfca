"""Whose rows a kernel's time rests on where a calibration is completed by another."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from cost_models import (
    CALIBRATION,
    COSTS,
    ROWS,
    bfloat16,
    dispatch,
    fitted,
    gemm,
    one,
    operator,
)

from hardware_profiles.schema import load_calibration, load_gpu
from hardware_profiles.tables import Measurement
from reference_model.formats import nearest_type
from simulator.hardware.kernels import completed
from simulator.hardware.kernels.completed import (
    CompletedKernels,
    completed_kernels,
    price_side_by_side,
)
from simulator.hardware.kernels.families import calibration_measurements, family_of
from simulator.hardware.kernels.related import RELATED_KINDS
from simulator.hardware.kernels.roofline import batch_of, least_seconds
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, MODELLED

H800 = load_gpu("h800_sxm")
RELATED = min(RELATED_KINDS)
WITH_H200 = fitted(calibration=load_calibration("h800_sxm"))
HEAD = gemm(4096, 129280, 7168)


def test_products_far_from_the_few_rows_of_their_family_come_from_the_other_gpu():
    # H200, same SMs: 10.83 ms at 132 SMs; the H800's only BF16 products are those of the gate
    own = COSTS.predict([bfloat16(HEAD)], sms=132, overlapped=False)
    taken = WITH_H200.predict([bfloat16(HEAD)], sms=132, overlapped=False)
    assert taken.seconds[0] == pytest.approx(10.83e-3, rel=0.06)
    assert taken.provenance[0] == own.provenance[0] == EXTRAPOLATED
    assert taken.high[0] / taken.low[0] > 1.3
    assert own.seconds[0] != taken.seconds[0]


def test_what_the_h800_has_rows_of_stays_its_own():
    op = gemm(4096, 1536, 7168)
    assert one(WITH_H200, op, sms=112, overlapped=True) == one(COSTS, op, sms=112, overlapped=True)
    router = bfloat16(gemm(4096, 256, 7168, out_dtype="float32"))
    own = one(COSTS, router, sms=112, overlapped=True)
    assert own[1] == "measured"
    assert one(WITH_H200, router, sms=112, overlapped=True) == own


def test_products_of_four_bit_weights_rest_on_whoever_has_rows_in_bf16():
    engine = fitted(
        {"node.gpu": "h100_sxm"},
        calibration=load_calibration("h100_sxm"),
        rows=calibration_measurements(load_calibration("h100_sxm")),
    )
    product = operator("grouped_gemm", dtype="bfloat16", rows=49152, n=2816, k=2048, groups=3)
    int4 = dataclasses.replace(product, dtype="w4a16_g32")
    # 830 TFLOP at 989 TFLOP/s take 0.57 ms, whatever its 17 MB of weights take at either width.
    (bf16, _), (w4a16, provenance) = (
        one(engine, op, sms=132, overlapped=False) for op in (product, int4)
    )
    assert engine.kernels_.answered_by(int4) == "h100_sxm_reference"
    assert provenance == "modelled"
    assert w4a16 == pytest.approx(bf16, rel=0.01)
    assert w4a16 > 2 * 49152 * 2816 * 2048 / 989e12


def test_a_kernel_without_any_row_comes_from_the_other_gpu():
    loss = operator("cross_entropy", dtype="bfloat16", rows=4096, columns=129280)
    assert one(COSTS, loss, sms=132, overlapped=False)[1] == "modelled"
    assert one(WITH_H200, loss, sms=132, overlapped=False)[1] == "extrapolated"


def test_a_taken_over_product_is_never_faster_than_the_roofline_nor_slowed_by_a_faster_part():
    faster = fitted({"node.gpu.hbm_bandwidth": "6.7 TB/s"}, calibration=WITH_H200.calibration)
    for op in (bfloat16(HEAD), gemm(129280, 7168, 4096, out_dtype="float32", accumulate=True)):
        for sms, overlapped in ((112, True), (132, False)):
            base = WITH_H200.predict([op], sms=sms, overlapped=overlapped, load=NO_LIMIT)
            least = least_seconds(batch_of([op]), np.array([float(sms)]), H800, memory_share=1.0)
            assert base.low[0] >= least[0] * (1 - 1e-12)
            quick = faster.predict([op], sms=sms, overlapped=overlapped, load=NO_LIMIT)
            assert quick.seconds[0] <= base.seconds[0] * (1 + 1e-9)


def test_a_kernel_that_nobody_timed_is_as_far_above_its_peak_as_one_of_the_same_product():
    sizes = {"sequences": 128, "query_length": 1, "heads": 128, "latent_dim": 512, "rope_dim": 64}
    dense = operator("mla_decode", dtype="bfloat16", out_dtype="bfloat16", kv_length=2048, **sizes)
    sparse = operator(
        "sparse_mla", dtype="bfloat16", out_dtype="bfloat16", kv_length=32768, top_k=2048, **sizes
    )
    known = COSTS.predict([dense], sms=132, overlapped=False)
    found = COSTS.predict([sparse], sms=132, overlapped=False)
    # Bound by bytes, of which it has a list of 2,048 positions of 4 bytes more for each query.
    moved = dense.bytes_read + dense.bytes_written
    more = (moved + 128 * 2048 * 4) / moved
    assert found.seconds[0] == pytest.approx(known.seconds[0] * more, rel=1e-9)
    assert found.provenance_names() == ["modelled"]
    assert found.high[0] / found.low[0] > known.high[0] / known.low[0]
    assert COSTS.answered_by(sparse) == COSTS.answered_by(dense)


def test_a_kernel_stood_in_for_is_as_uncertain_as_the_other_and_a_class_that_nobody_measured(
    monkeypatch,
):
    """Another kernel takes 2 s of 0.5 to 6; at its peak this one takes half as long again."""
    monkeypatch.setattr(completed, "related_batch", lambda batch, other: "other")
    monkeypatch.setattr(completed, "least_seconds", lambda *_, memory_share: np.zeros(1))
    classes = {(False, True): SimpleNamespace(modelled_width=0.5)}
    kernels = SimpleNamespace(
        of_batch=lambda *_: tuple(np.array([x]) for x in (2.0, 0.5, 6.0, MEASURED)),
        _at_peak=lambda family, batch, sms: 2.0 if batch == "other" else 3.0,
        _answering=lambda _: SimpleNamespace(classes=classes),
        own=SimpleNamespace(gpu=None, memory_share=1.0),
    )
    found = CompletedKernels._stood_in(kernels, ("gemm",), ("gemm",), (0,), None, False)
    below, above = np.hypot(np.log(4), 0.5), np.hypot(np.log(3), 0.5)
    expected = [3.0, 3 * np.exp(-below), 3 * np.exp(above), MODELLED]
    assert [float(part[0]) for part in found] == pytest.approx(expected, rel=1e-12)


def test_what_own_rows_say_nothing_of_is_what_the_shipped_calibration_says_by_itself():
    shipped = load_calibration("h200_sxm")
    hopper = {"node.gpu": "h200_sxm"}
    engine = fitted(hopper, calibration=shipped, rows=calibration_measurements(shipped))
    product = next(
        row
        for row in calibration_measurements(shipped)
        if (row.kind, row.dtype, dict(row.sizes)["m"]) == ("gemm", "fp8_e4m3", 128)
    )
    mine = shipped.model_copy(
        update={
            "name": "mine",
            "kernel_sets": (product.kernel_set,),
            "fits": (),
            "completed_by": ("h200_sxm", *shipped.completed_by),
        }
    )
    own = fitted(hopper, calibration=mine, rows=[product])
    gate = gemm(128, 256, 7168, dtype="bfloat16", out_dtype="float32")
    head = gemm(128, 129280, 7168, dtype="bfloat16")
    norm = operator("rmsnorm", dtype="bfloat16", rows=128, columns=7168)
    for op in (gate, head, norm):
        assert one(own, op, sms=132, overlapped=False) == one(engine, op, sms=132, overlapped=False)
        assert own.answered_by(op) == engine.answered_by(op)
    assert own.answered_by(gate) == "h200_sxm"
    own_product = gemm(**dict(product.sizes))
    seconds, provenance = one(own, own_product, sms=132, overlapped=False)
    assert seconds == pytest.approx(product.seconds, rel=1e-12)
    assert provenance == "measured"
    assert own.answered_by(own_product) == "mine"


def test_a_calibration_of_transfers_alone_is_completed_by_another():
    transfers = [row for row in ROWS if row.kind in ("dispatch", "combine")]
    completed = CALIBRATION.model_copy(update={"completed_by": ("h200_sxm_reference",)})
    costs = fitted(calibration=completed, rows=transfers)
    whole = fitted(calibration=completed, rows=ROWS)
    op = dispatch()
    assert one(costs, op, sms=20, overlapped=True) == one(whole, op, sms=20, overlapped=True)
    assert one(costs, gemm(4096, 7168, 2048), sms=112, overlapped=True)[0] > 0


def test_what_work_raises_a_time_by_raises_its_interval_by():
    """2 s of 1 to 4; rows with less work say 3."""
    kernels = SimpleNamespace(
        _one_by_one=lambda *_, widths: tuple(np.array([x]) for x in (2.0, 1.0, 4.0, MEASURED)),
        _restated_floor=lambda *_: SimpleNamespace(raise_to=lambda *_: np.log([3.0])),
        _elsewhere=lambda _: None,
    )
    found = CompletedKernels.of_batch(kernels, (), None, None, False)
    assert [float(part[0]) for part in found] == pytest.approx([3.0, 1.5, 6.0, MEASURED])


@pytest.mark.parametrize(
    ("kind", "model", "restated"),
    [("mla_decode", "rows", False), ("mla_decode", None, True), ("gemm", "rows", True)],
)
def test_no_row_bounds_a_kernel_on_the_measured_gpu_nor_without_rows_nor_a_product(
    kind, model, restated
):
    answering = SimpleNamespace(model=lambda *_: (model, False), restated=restated)
    kernels = SimpleNamespace(_answering=lambda _: answering, _restated_floors={})
    assert CompletedKernels._restated_floor(kernels, (kind,), False) is None


def test_what_more_rows_raise_a_time_by_raises_its_interval_by(monkeypatch):
    monkeypatch.setattr(completed, "least_seconds", lambda *_, memory_share: np.zeros(1))
    kernels = SimpleNamespace(
        _one_by_one=lambda *_, widths: tuple(np.array([x]) for x in (2.0, 1.0, 4.0, INTERPOLATED)),
        _restated_floor=lambda *_: None,
        _elsewhere=lambda _: None,
        _at_peak=lambda *_: None,
        _rising=lambda *_: SimpleNamespace(seconds=lambda *_: np.array([3.0])),
        own=SimpleNamespace(gpu=None, memory_share=1.0),
    )
    found = CompletedKernels.of_batch(kernels, ("gemm",), None, None, False)
    assert [float(part[0]) for part in found] == pytest.approx([3.0, 1.5, 6.0, INTERPOLATED])


@pytest.mark.parametrize(
    ("digest", "kept", "written"), [(None, 0, []), ("d", 3, []), ("d", 2, ["d"]), ("d", 0, ["d"])]
)
def test_times_are_kept_where_they_have_a_place_and_some_are_new(
    monkeypatch, digest, kept, written
):
    found = []
    monkeypatch.setattr(completed, "write_times", lambda digest, times: found.append(digest))
    kernels = CompletedKernels(CALIBRATION, H800, ROWS)
    kernels.digest, kernels._kept = digest, kept
    kernels._times = {(False, "a"): {1: None, 2: None}, (True, "b"): {3: None}}
    kernels.keep_times()
    assert found == written
    assert kernels._kept == (3 if written else kept)


@pytest.mark.parametrize(
    ("gpu", "restated", "found"),
    [
        ("h800_sxm", False, (1.0, MEASURED)),
        # A time of another GPU, or one that is asked of another, is restated.
        ("h200_sxm", False, (2.0, MEASURED)),
        ("h800_sxm", True, (2.0, MEASURED)),
        ("b200_sxm", False, (2.0, MODELLED)),
    ],
)
def test_a_time_is_restated_where_the_gpu_is_another_and_modelled_on_another_architecture(
    gpu, restated, found
):
    def of(gpu):
        return SimpleNamespace(
            measured_gpu=load_gpu(gpu),
            restated=restated,
            compute=lambda *_, widths: tuple(np.array([x]) for x in (1.0, 1.0, 1.0, MEASURED)),
        )

    kernels = SimpleNamespace(
        own=of("h800_sxm"),
        _stand_in=lambda _: None,
        _answering=lambda _: of(gpu),
        _related=lambda _: None,
        _restate=lambda answer, batch, sms, source: (answer[0] * 2, *answer[1:]),
        _with_more_rows=lambda _: None,
    )
    seconds, _, _, provenance = CompletedKernels._one_by_one(
        kernels, ("gemm",), None, None, False, widths=True
    )
    assert (seconds[0], provenance[0]) == found


@pytest.mark.parametrize(
    ("kind", "own", "others", "stands_in"),
    [
        (RELATED, False, (), True),
        # Kernels of no related kind, those with own rows, and those that others have rows of.
        ("rmsnorm", False, (), False),
        (RELATED, True, (), False),
        (RELATED, False, (RELATED,), False),
    ],
)
def test_a_kernel_stands_in_where_nobody_has_rows_of_the_kind(
    monkeypatch, kind, own, others, stands_in
):
    monkeypatch.setattr(completed, "related_family", lambda family, known, also: "other")
    family = (kind, "bfloat16", "bfloat16", False)
    mine = SimpleNamespace(
        families={(False, family): None} if own else {},
        others=[SimpleNamespace(families={(False, (each,)): None}) for each in others],
    )
    found = CompletedKernels._stand_in(SimpleNamespace(own=mine), family)
    assert found == ("other" if stands_in else None)


def test_a_measured_time_is_at_least_that_of_its_bytes_and_another_at_the_fastest_rate(monkeypatch):
    """Products of 2 s, the lower end of which is 1 s; 1.5 s at all of the HBM rate, or more."""
    monkeypatch.setattr(
        completed, "least_seconds", lambda *_, memory_share: 1.5 / np.asarray(memory_share)
    )
    parts = [np.full(2, 2.0), np.full(2, 1.0), np.full(2, 4.0), np.array([MEASURED, INTERPOLATED])]
    kernels = SimpleNamespace(
        _one_by_one=lambda *_, widths: tuple(parts),
        _restated_floor=lambda *_: None,
        _elsewhere=lambda _: None,
        _at_peak=lambda *_: None,
        _rising=lambda *_: SimpleNamespace(seconds=lambda *_: np.full(2, 2.0)),
        own=SimpleNamespace(gpu=None, memory_share=0.8),
    )
    seconds, low, high, _ = CompletedKernels.of_batch(kernels, ("gemm",), None, None, False)
    assert (seconds.tolist(), high.tolist()) == ([2.0, 2.0], [4.0, 4.0])
    assert low.tolist() == [1.5, pytest.approx(1.5 / 0.8)]


def test_own_rows_of_a_product_scale_the_completing_ones_and_add_their_doubt(monkeypatch):
    """4 s of 2 to 20 there; of the same product 6 s here, of 3 to 18, where the other says 4."""
    monkeypatch.setattr(completed, "related_batch", lambda batch, _: batch)

    def model(*answer):
        parts = tuple(np.array([float(x)]) for x in answer)
        return SimpleNamespace(
            measured_gpu=SimpleNamespace(sms=132), compute=lambda *_, widths: parts, answer=parts
        )

    own, other = model(6, 3, 18, MEASURED), model(4, 4, 4, MEASURED)
    found = CompletedKernels._in_ratio(
        SimpleNamespace(own=own), model(4, 2, 20, MEASURED).answer, other, (), None,
        np.array([132.0]), False, widths=True,
    )  # fmt: skip
    halves, thirds = np.log(2), np.log(3)
    expected = [
        4 * 6 / 4,
        6 * np.exp(-np.hypot(halves, halves)),
        6 * np.exp(np.hypot(np.log(5), thirds)),
        EXTRAPOLATED,
    ]
    assert [float(part[0]) for part in found] == pytest.approx(expected, rel=1e-12)


def test_own_and_completing_rows_are_compared_on_sms_that_both_gpus_have(monkeypatch):
    monkeypatch.setattr(completed, "related_batch", lambda batch, _: batch)
    asked = []

    def model(sms):
        def compute(family, batch, on, overlapped, *, widths):
            asked.append(on.tolist())
            return (np.ones(2),) * 4

        return SimpleNamespace(measured_gpu=SimpleNamespace(sms=sms), compute=compute)

    CompletedKernels._in_ratio(
        SimpleNamespace(own=model(148)), (np.ones(2),) * 4, model(132), (), None,
        np.array([64.0, 160.0]), False, widths=True,
    )  # fmt: skip
    assert asked == [[64.0, 132.0]] * 2


@pytest.mark.parametrize(
    ("spread", "microseconds", "provenance"),
    [
        # 1.2816 deviations below 40 us are 39.7 us, above the 36 us of more rows: the row stays.
        (0.005, 40.0, "measured"),
        # ... 33.0 us: room for them. Without repeats nothing speaks for the row.
        (0.15, 36.0, "interpolated"),
        (None, 36.0, "interpolated"),
    ],
)
def test_a_measured_row_is_changed_within_its_repeats_alone(spread, microseconds, provenance):
    def row(tokens, seconds, spread):
        return Measurement(
            kind="quantize",
            sizes=(("columns", 7168), ("rows", tokens)),
            dtype="bfloat16",
            sms=132,
            seconds=seconds,
            spread=spread,
            source="made up",
            conditions=(("out_dtype", "fp8_e4m3"), ("set", CALIBRATION.kernel_sets[0])),
        )

    rows = [row(3000, 40e-6, spread), row(4096, 36e-6, 0.005), row(512, 8e-6, 0.005)]
    costs = fitted(rows=rows)
    cast = partial(operator, "quantize", dtype="bfloat16", out_dtype="fp8_e4m3", columns=7168)
    assert one(costs, cast(rows=3000), sms=132, overlapped=False) == (
        pytest.approx(microseconds * 1e-6, rel=1e-9),
        provenance,
    )
    # What was not measured still rises with its rows.
    between = costs.predict(
        [cast(rows=tokens) for tokens in (2900, 3100, 4096)], sms=132, overlapped=False
    ).seconds
    assert (np.diff(between) >= 0).all()
    assert between[2] == pytest.approx(36e-6, rel=1e-9)


@pytest.mark.parametrize(
    ("gpu", "basis", "restatement", "below", "above"),
    [
        ("h200_sxm", "measured", None, 0.88, 1.22),
        ("h200_sxm", "measured", (0.5, 2.0), 0.88, 1.22),
        ("h200_sxm", "datasheet", (0.5, 2.0), 0.5, 2.0),
        ("b200_sxm", "measured", None, 0.9, 1.2),
        ("b200_sxm", "measured", (0.5, 2.0), 0.5, 2.0),
    ],
)
def test_a_restated_time_is_uncertain_by_its_own_and_by_the_other_gpus_error(
    gpu, basis, restatement, below, above
):
    """2 s between 1.6 and 2.5; products of another Hopper within 0.88 and 1.22, of a GPU of another
    architecture within what the calibration says of its restatement or of other GPUs, and of a GPU
    without a row as well: logarithms add as sides do."""
    error = SimpleNamespace(value=1.25, low=1.25 * 0.9, high=1.25 * 1.2)
    stated = restatement and SimpleNamespace(
        value=1.25, low=1.25 * restatement[0], high=1.25 * restatement[1]
    )
    calibration = SimpleNamespace(basis=basis, restatement=stated, other_gpu=error)
    own = SimpleNamespace(calibration=calibration, gpu=H800, measured_gpu=H800, memory_share=1.0)
    told = tuple(np.array([value]) for value in (2.0, 1.6, 2.5, MEASURED))
    source = SimpleNamespace(measured_gpu=load_gpu(gpu))
    seconds, low, high, provenance = CompletedKernels._restate(
        SimpleNamespace(own=own), told, batch_of([HEAD]), np.array([132.0]), source
    )
    assert seconds[0] == 2.0
    assert np.log(low[0] / 2) == pytest.approx(-np.hypot(np.log(1 / 0.8), np.log(1 / below)))
    assert np.log(high[0] / 2) == pytest.approx(np.hypot(np.log(1.25), np.log(above)))
    assert provenance[0] == (EXTRAPOLATED if basis == "measured" else MODELLED)


def test_a_family_that_nobody_has_is_left_to_whoever_knows_its_class():
    other = SimpleNamespace(families={}, classes={(False, True): "products"})
    own = SimpleNamespace(families={}, classes={(False, False): "copies"}, others=[other])
    family = ("gemm", "fp8_e4m3", "bfloat16", False)
    assert CompletedKernels._answering(SimpleNamespace(own=own), family) is other


INT4 = ("gemm", "w4a16_g32", "bfloat16", False)


@pytest.mark.parametrize(
    ("own", "others", "answers"),
    [
        # Own rows first, then those of the family, of the type that it is most like, of its kind.
        ([INT4], [[INT4]], 0),
        ([("gemm", "bfloat16", "bfloat16", False)], [[], [INT4]], 2),
        ([("gemm", "fp8_e4m3", "float32", False)], [[("gemm", "bfloat16", "float32", False)]], 1),
        (
            [("rmsnorm", "bfloat16", "bfloat16", False)],
            [[("gemm", "float32", "float32", False)]],
            1,
        ),
        # Nobody has anything: the calibration itself says so.
        ([], [[]], 0),
    ],
)
def test_a_family_is_answered_for_by_whoever_has_rows_nearest_to_it(own, others, answers):
    models = [
        SimpleNamespace(families=[(False, family) for family in rows], classes=())
        for rows in (own, *others)
    ]
    models[0].others = models[1:]
    found = CompletedKernels._answering(SimpleNamespace(own=models[0]), INT4)
    assert nearest_type("w4a16_g32") == "bfloat16"
    assert models.index(found) == answers


@pytest.mark.parametrize(
    ("kind", "rows", "found"), [("gemm", 4, "more"), ("gemm", 5, None), ("rmsnorm", 4, None)]
)
def test_a_product_of_fewer_than_five_rows_is_left_to_whoever_has_more(kind, rows, found):
    family = (kind, "bfloat16", "bfloat16", False)

    def of(name, rows):
        families = {} if rows is None else {(False, family): SimpleNamespace(rows=rows)}
        return SimpleNamespace(name=name, families=families)

    own = of("own", rows)
    own.others = [of("none", None), of("as many", rows), of("more", rows + 1)]
    other = CompletedKernels._with_more_rows(SimpleNamespace(own=own), family)
    assert (None if other is None else other.name) == found


def test_32768_kernels_are_predicted_at_once_and_262144_times_are_known(monkeypatch):
    asked = []

    def batch_of(operators):
        asked.append(len(operators))
        return SimpleNamespace(moved_bytes=np.zeros(len(operators)))

    monkeypatch.setattr(completed, "batch_of", batch_of)
    family = family_of(HEAD)
    known = dict.fromkeys(range(2**18))
    kernels = SimpleNamespace(
        _times={(False, family): known},
        _remember=lambda of, new: None,
        of_batch=lambda family, batch, on, overlapped: (on, on, on, on),
    )
    CompletedKernels.times(kernels, family, [(HEAD, sms) for sms in range(2**15 + 1)], False)
    assert asked == [2**15, 1]
    assert len(known) == 2**18 + 2**15 + 1
    CompletedKernels.times(kernels, family, [(HEAD, 1)], False)
    assert len(known) == 1


def test_what_is_learned_from_the_same_inputs_is_learned_once():
    of_links = {"transfers": load_calibration("h100_sxm").transfers}
    learned = completed_kernels(CALIBRATION, H800, ROWS)
    assert completed_kernels(CALIBRATION.model_copy(update=of_links), H800, ROWS) is learned
    assert completed_kernels(CALIBRATION, H800.model_copy(update={"power": 1.0}), ROWS) is learned


@pytest.mark.parametrize(
    ("calibration", "gpu", "rows"),
    [
        (CALIBRATION.model_copy(update={"kernel_sets": CALIBRATION.kernel_sets[:1]}), H800, ROWS),
        (CALIBRATION, H800.model_copy(update={"hbm_bandwidth": 4e12}), ROWS),
        (CALIBRATION, H800, ROWS[1:]),
    ],
    ids=["calibration", "GPU", "rows"],
)
def test_anything_else_that_times_rest_on_is_learned_anew(calibration, gpu, rows):
    assert completed_kernels(calibration, gpu, rows) is not completed_kernels(
        CALIBRATION, H800, ROWS
    )


def test_a_time_is_the_same_whether_known_asked_alone_or_with_others():
    kernels = [(gemm(m, 1536, 7168), 132) for m in (100, 4096, 5000)]
    family = family_of(kernels[0][0])
    fresh = CompletedKernels(CALIBRATION, H800, ROWS)
    together = fresh.times(family, kernels, False)
    assert fresh.times(family, kernels[::-1], False) == together[::-1]
    alone = CompletedKernels(CALIBRATION, H800, ROWS)
    assert [alone.times(family, [kernel], False)[0] for kernel in kernels] == together


def test_each_kernel_is_worked_out_once(monkeypatch):
    fresh = CompletedKernels(CALIBRATION, H800, ROWS)
    asked = []
    of_batch = fresh.of_batch
    monkeypatch.setattr(
        fresh, "of_batch", lambda *args: asked.append(len(args[1])) or of_batch(*args)
    )
    kernels = [(gemm(m, 1536, 7168), 132) for m in (100, 4096, 100)]
    family = family_of(kernels[0][0])
    fresh.times(family, kernels, False)
    fresh.times(family, [*kernels, (gemm(5000, 1536, 7168), 132)], False)
    assert asked == [2, 1]


def test_times_on_several_gpus_at_once_are_those_on_each_to_the_last_bit(monkeypatch):
    calibration = load_calibration("h800_sxm")
    rows = calibration_measurements(calibration)
    gpus = [
        H800.model_copy(update=changed)
        for changed in (
            {"hbm_bandwidth": 2e12},
            {"hbm_bandwidth": 5e12, "l2_capacity": 2.0**26},
            {"sm_clock": 1.5e9},
            {"sm_clock": 1.5e9, "peak_clock": 1.83e9},
            {"peak_compute": H800.peak_compute | {"bfloat16": 5e14}},
        )
    ]
    kernels = [
        gemm(4096, 7168, 2048),
        gemm(4096, 2112, 7168),
        bfloat16(gemm(96, 256, 7168, out_dtype="float32")),
        HEAD,
        bfloat16(HEAD),
        operator(
            "attention_forward",
            dtype="bfloat16",
            sequences=1,
            heads=128,
            query_length=4096,
            kv_length=4096,
            qk_dim=192,
            v_dim=128,
        ),
    ]
    asked = [(op, sms, beside) for op in kernels for sms in (112, 132) for beside in (False, True)]
    ask_for = [(family_of(op), [(op, sms)], beside) for op, sms, beside in asked]
    first, *others = (
        completed_kernels(calibration, gpu, rows)
        for gpu in (H800.model_copy(update={"hbm_bandwidth": 4e12}), *gpus)
    )
    for each in ask_for:
        first.times(*each)
    price_side_by_side([first, *others])
    alone = [CompletedKernels(calibration, gpu, rows) for gpu in gpus]
    expected = [[each.times(*kernel) for kernel in ask_for] for each in alone]
    monkeypatch.setattr(CompletedKernels, "of_batch", None)
    assert [[each.times(*kernel) for kernel in ask_for] for each in others] == expected


def test_a_gpu_at_the_rates_of_the_measured_one_is_priced_by_its_rows_alone():
    calibration = load_calibration("h800_sxm")
    rows = calibration_measurements(calibration)
    op = gemm(4096, 1536, 7168)
    slow, same, fast = (
        completed_kernels(calibration, H800.model_copy(update={"hbm_bandwidth": rate}), rows)
        for rate in (2.5e12, H800.hbm_bandwidth, 6e12)
    )
    kernel = (family_of(op), [(op, 112)], True)
    slow.times(*kernel)
    price_side_by_side([slow, same, fast])
    ((seconds, _, _, provenance, _),) = same.times(*kernel)
    assert provenance == MEASURED
    assert seconds == one(COSTS, op, sms=112, overlapped=True)[0]
    assert fast.times(*kernel)[0][3] == EXTRAPOLATED
