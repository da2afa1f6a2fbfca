"""What a calibration's own rows say, and how sure they are."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cost_models import (
    CALIBRATION,
    COSTS,
    ROWS,
    WITHOUT_TRACE,
    fitted,
    gemm,
    operator,
)
from made_up_rows import made_up

from hardware_profiles.schema import load_gpu
from hardware_profiles.tables import TRANSFER_KINDS
from simulator.hardware.costs import NotCalibrated
from simulator.hardware.kernels import calibrated
from simulator.hardware.kernels.calibrated import CalibratedKernels, LearnedKernels
from simulator.hardware.kernels.families import family_of, operator_of
from simulator.hardware.kernels.roofline import batch_of, least_seconds
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, MODELLED

H800 = load_gpu("h800_sxm")


def test_intervals_between_rows_and_beyond_them_hold_what_the_calibration_says():
    # The 80% quantile of held-out errors over the deviation of the process, times the deviation.
    family = ("gemm", "fp8_e4m3", "bfloat16", False)
    model = WITHOUT_TRACE.kernels_.own.families[False, family]
    scales, *_ = model.scales
    fit = next(
        fit
        for fit in WITHOUT_TRACE.calibration.fits
        if (fit.kind, fit.kernel_set) == ("gemm", "infersim")
    )
    assert scales == fit.widths
    told = {
        name: WITHOUT_TRACE.predict([op], sms=132, overlapped=False)
        for name, op in (
            ("between", gemm(3000, 1536, 7168)),
            ("another shape", gemm(3000, 2000, 7168)),
            ("far", gemm(3000, 200_000, 60_000)),
        )
    }
    widths = [float(np.log(each.high / each.seconds)[0]) for each in told.values()]
    assert widths == sorted(widths)
    # One kernel set alone: no other lies beyond an end.
    between = told["between"]
    assert np.log(between.seconds / between.low)[0] == pytest.approx(widths[0])
    assert [each.provenance_names()[0] for each in told.values()] == [
        "interpolated",
        "extrapolated",
        "extrapolated",
    ]


FEW_ROWS = {"m": 16, "n": 36864, "k": 7168}


def test_weights_of_four_bits_are_read_as_such_and_multiplied_in_bf16():
    product = gemm(**FEW_ROWS, dtype="w4a16_g32")
    # BF16 in and out, half a byte for a weight and two for a group of 32.
    moved = 16 * 7168 * 2 + 36864 * 7168 * (0.5 + 2 / 32) + 16 * 36864 * 2
    assert product.bytes_read + product.bytes_written == moved == 150_044_672
    bound = least_seconds(batch_of([product]), np.array([132.0]), H800, memory_share=1.0)
    assert bound == pytest.approx(moved / 3.35e12)
    many = gemm(m=16384, n=36864, k=7168, dtype="w4a16_g32")
    bound = least_seconds(batch_of([many]), np.array([132.0]), H800, memory_share=1.0)
    assert bound == pytest.approx(2 * 16384 * 36864 * 7168 / 989e12)


def test_products_of_a_type_without_rows_are_modelled_by_their_own_roofline():
    """They reach of it what products of the type that they are most like reach of theirs."""
    seconds = {}
    for dtype, provenance in (
        ("fp8_e4m3", "interpolated"),
        ("fp8_e4m3_tensor", "modelled"),
        ("w4a16_g32", "modelled"),
        ("bfloat16", "modelled"),
    ):
        told = WITHOUT_TRACE.predict([gemm(**FEW_ROWS, dtype=dtype)], sms=132, overlapped=False)
        assert told.provenance_names()[0] in (provenance, "extrapolated")
        assert (told.provenance_names()[0] == "modelled") == (provenance == "modelled")
        seconds[dtype] = float(told.seconds[0])
    # 9 of 16, 16 and 32 of 16 bits for a weight.
    assert seconds["w4a16_g32"] < seconds["fp8_e4m3"] < seconds["bfloat16"]
    assert seconds["fp8_e4m3_tensor"] == pytest.approx(seconds["fp8_e4m3"], rel=2e-3)


def test_products_of_a_type_without_rows_are_as_uncertain_as_their_class_besides():
    own, other = (
        COSTS.predict([gemm(3000, 1536, 7168, dtype=dtype)], sms=132, overlapped=False)
        for dtype in ("fp8_e4m3", "fp8_e4m3_tensor")
    )
    of_class = COSTS.kernels_.own.classes[False, True].modelled_width
    width, wider = (float(np.log(told.high / told.seconds)[0]) for told in (own, other))
    assert of_class > width
    assert wider == pytest.approx(np.hypot(width, of_class), rel=1e-2)


def test_a_type_that_the_measured_gpu_does_not_multiply_takes_what_its_class_reaches():
    b200 = fitted({"node.gpu": "b200_sxm"})
    told = b200.predict([gemm(m=8192, n=8192, k=8192, dtype="fp4_e2m1")], sms=148, overlapped=False)
    assert told.provenance_names() == ["modelled"]
    reached = np.exp(b200.kernels_.own.classes[False, True].log_ratio)
    # 64 x 64 tiles of 128 rows and columns on 148 SMs are 28 waves.
    waves = 2 * 128 * 28 * (128 + 32) * 8192 / (9e15 / 148)
    floor = b200.calibration.kernel_floor.value
    assert told.seconds[0] == pytest.approx(reached * (waves + floor), rel=1e-9)


def test_a_measured_time_may_be_off_by_what_timing_it_again_makes_of_it():
    """The row has no repeats, its class a spread of 3%, any time 40 ns: 1.2816 times the root of
    3%^2 + 1.89%^2 + (40 ns / t)^2."""
    rows = [replace(row, spread=0.03) for row in made_up()]
    calibration = CALIBRATION.model_copy(update={"kernel_sets": ("made_up",), "fits": ()})
    told = fitted(calibration=calibration, rows=rows).predict(
        [operator_of(rows[0])], sms=132, overlapped=False
    )

    assert told.provenance_names() == ["measured"]
    width = float(np.log(told.high / told.seconds)[0])
    short = 40e-9 / told.seconds[0]
    assert width == pytest.approx(1.2816 * (0.03**2 + 0.0189**2 + short**2) ** 0.5, rel=1e-4)


def test_an_interval_is_that_of_the_row_or_of_the_model_and_what_converts_its_condition(
    monkeypatch,
):
    """A row of 3% in a class of 8%, half of which counts; one without repeats; and a time of a
    model, 10% wide, of a family converted by 0.75 to 1.08, once within and once outside its class,
    which is 50% wide. Timing again makes nothing of them, but 3% of the first."""
    again = np.array([0.03, 0.0, 0.0, 0.0])
    monkeypatch.setattr(
        calibrated, "common_errors", lambda: SimpleNamespace(repeat=lambda kind, seconds: again)
    )
    ratio = SimpleNamespace(low=0.75, high=1.08)
    kernels = SimpleNamespace(conditions=SimpleNamespace(ratio=lambda kind: ratio))
    found = LearnedKernels._width(
        kernels,
        SimpleNamespace(kind="gemm"),
        SimpleNamespace(spread=0.08, modelled_width=0.5),
        SimpleNamespace(
            spread=np.array([0.03, np.nan, 0.0, 0.0]),
            log_seconds=np.zeros(4),
            width=np.full(4, 0.1),
        ),
        np.array([MEASURED, MEASURED, INTERPOLATED, MODELLED]),
    )
    converted = (0.1**2 + np.log(1.2) ** 2) ** 0.5
    assert found == pytest.approx(
        [1.2816 * 0.05, 1.2816 * 0.08, converted, (converted**2 + 0.5**2) ** 0.5], rel=1e-12
    )


def test_a_table_without_the_named_kernel_sets_says_so():
    with pytest.raises(NotCalibrated, match="h800_sxm: no measured compute kernel"):
        fitted(rows=[])


def test_a_type_without_rows_borrows_from_the_type_that_it_is_most_like():
    """Four-bit weights are multiplied in BF16, though there are more rows in FP8."""
    families = {
        (False, ("gemm", dtype, "bfloat16", False)): SimpleNamespace(rows=rows)
        for dtype, rows in (("fp8_e4m3", 100), ("bfloat16", 10))
    }
    asked = ("gemm", "w4a16_g32", "bfloat16", False)
    model, borrowed = LearnedKernels.model(SimpleNamespace(families=families), asked, False)
    assert (model.rows, borrowed) == (10, True)


def test_a_product_of_another_result_borrows_from_its_own_operand_type_first():
    """MXFP8 is most like FP8, but has rows of its own, though fewer."""
    families = {
        (False, ("gemm", dtype, out, False)): SimpleNamespace(rows=rows)
        for dtype, out, rows in (
            ("fp8_e4m3", "bfloat16", 100),
            ("mxfp8_e4m3", "bfloat16", 10),
            ("bfloat16", "mxfp8_e4m3", 1000),
        )
    }
    asked = ("gemm", "mxfp8_e4m3", "float32", False)
    model, borrowed = LearnedKernels.model(SimpleNamespace(families=families), asked, False)
    assert (model.rows, borrowed) == (10, True)


def test_a_kind_borrows_from_its_own_rows_under_the_same_condition_alone():
    families = {
        (overlapped, (kind, "fp8_e4m3", "bfloat16", False)): SimpleNamespace(rows=rows)
        for overlapped, kind, rows in (
            (False, "gemm", 10),
            (True, "gemm", 100),
            (False, "grouped_gemm", 1000),
        )
    }
    asked = ("gemm", "fp8_e4m3", "float32", False)
    for overlapped, rows in ((False, 10), (True, 100)):
        model, borrowed = LearnedKernels.model(
            SimpleNamespace(families=families), asked, overlapped
        )
        assert (model.rows, borrowed) == (rows, True)
    of_no_rows = ("rmsnorm", "bfloat16", "bfloat16", False)
    assert LearnedKernels.model(SimpleNamespace(families=families), of_no_rows, False) == (
        None,
        True,
    )


def test_every_kernel_takes_twice_as_long_on_a_gpu_of_half_of_every_rate():
    calibration = CALIBRATION.model_copy(update={"completed_by": ()})
    half = {"hbm_bandwidth": H800.hbm_bandwidth / 2, "sm_clock": H800.sm_clock / 2}
    peaks = {dtype: peak / 2 for dtype, peak in H800.peak_compute.items()}
    slow = H800.model_copy(update={**half, "peak_compute": peaks})
    norm = operator("rmsnorm", dtype="bfloat16", rows=4096, columns=7168)
    for op in (gemm(4096, 1536, 7168), norm):
        asked = family_of(op), batch_of([op]), np.array([132.0]), False
        (whole, *_), (halved, *_) = (
            CalibratedKernels(calibration, gpu, ROWS).compute(*asked, widths=True)
            for gpu in (H800, slow)
        )
        assert halved == pytest.approx(2 * whole, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "overlapped", "borrowed", "room", "logs", "provenance"),
    [
        # As the rows say, on the SMs that a product has.
        ("gemm", False, False, [40.0, 40.0], [1.0, 2.0], [MEASURED, MEASURED]),
        # Beside a transfer the second is slowed, so that it is no longer what was measured.
        ("gemm", True, False, [40.0, 40.0], [1.0, 2.5], [MEASURED, INTERPOLATED]),
        ("gemm", False, True, [40.0, 40.0], [1.0, 2.0], [EXTRAPOLATED, EXTRAPOLATED]),
        # Other kernels are known on all SMs, and squeezed onto fewer beside a transfer.
        ("rmsnorm", False, False, [132.0, 132.0], [1.0, 2.0], [MEASURED, MEASURED]),
        ("rmsnorm", True, False, [40.0, 40.0], [1.25, 2.75], [MEASURED, INTERPOLATED]),
    ],
)
def test_a_time_is_what_rows_say_slowed_and_squeezed_beside_a_transfer(
    monkeypatch, kind, overlapped, borrowed, room, logs, provenance
):
    monkeypatch.setattr(calibrated, "waves_and_bytes", lambda *_: (0.0, 0.0))
    asked = []

    def predict(batch, on, ideal, achieved):
        asked.append(on.tolist())
        return SimpleNamespace(
            log_seconds=np.array([1.0, 2.0]),
            provenance=np.array([MEASURED, MEASURED]),
            slowed="slowed",
            width="width",
            rival=np.array([1.75, 2.125]),
        )

    like = SimpleNamespace(dtype="fp8_e4m3")
    model = SimpleNamespace(
        floor=0.0,
        tiles="tiles",
        predict=predict,
        base_rows=SimpleNamespace(batch=SimpleNamespace(like=like)),
    )
    kernels = SimpleNamespace(
        model=lambda family, overlapped: (model, borrowed),
        classes={(overlapped, kind == "gemm"): None},
        calibration=SimpleNamespace(
            overlap=SimpleNamespace(memory_bound=SimpleNamespace(value=1.5))
        ),
        conditions=SimpleNamespace(
            log_more=lambda kind, slowed: np.array([0.0, 0.5]),
            log_squeeze=lambda on, sms, *, slowdown: np.full(2, (slowdown - 1) / 2),
        ),
    )
    found = LearnedKernels.told(
        kernels, (kind, "fp8_e4m3", "bfloat16", False), batch_of([gemm(1, 1, 1)] * 2),
        np.array([40.0, 40.0]), H800,
        overlapped=overlapped, restated=False, unknown=False, widths=False,
    )  # fmt: skip
    assert asked == [room]
    assert found.log_seconds.tolist() == logs
    assert found.provenance.tolist() == provenance
    # What another kernel set says of what was not measured.
    apart = [
        0.0 if where == MEASURED else rival - log
        for where, rival, log in zip(provenance, (1.75, 2.125), (1.0, 2.0), strict=True)
    ]
    assert found.apart.tolist() == apart
    assert (found.width, found.tiles, found.bound.size) == ("width", "tiles", 0)


MADE_UP = CALIBRATION.model_copy(
    update={"kernel_sets": ("few", "made_up"), "completed_by": (), "restated_from": (), "fits": ()}
)


def test_4096_batches_of_operators_are_known_at_once():
    learned = CalibratedKernels(MADE_UP, H800, made_up()).learned
    assert learned.kept.cache_info().maxsize == 4096


def test_rows_are_those_of_the_named_kernel_sets_but_bulk_transfers():
    bulk = replace(made_up()[0], kind=next(iter(TRANSFER_KINDS)))
    rows = [*made_up(), *made_up(kernel_set="other"), bulk]
    assert CalibratedKernels(MADE_UP, H800, rows).rows == made_up()


def test_the_kernel_set_with_most_rows_gives_a_family_its_shape_and_a_launch_its_kernels():
    """Two kernels make a launch in one of four rows: 5 / 4 of the floor of one."""
    many = made_up()
    quarter = len(many) // 4
    twice = [replace(row, conditions=(*row.conditions, ("kernels", "2"))) for row in many[:quarter]]
    few = made_up(kernel_set="few", slower=2.0)[:10]
    alone = CalibratedKernels(MADE_UP, H800, [*twice, *many[quarter:]])
    ((_, model),) = [entry for entry in alone.families.items() if not entry[0][0]]
    assert len(many) == 4 * quarter
    assert model.floor == pytest.approx(MADE_UP.kernel_floor.value * 1.25, rel=1e-12)
    both = CalibratedKernels(MADE_UP, H800, [*few, *many])
    ((_, model),) = [entry for entry in both.families.items() if not entry[0][0]]
    assert len(model.base_rows) == len(many)


def test_nothing_but_a_row_that_says_so_moves_bytes_faster_than_the_fastest_kernel(monkeypatch):
    asked = []

    def least_seconds(batch, sms, gpu, *, memory_share):
        asked.append(memory_share.tolist())
        return np.zeros(len(batch))

    monkeypatch.setattr(calibrated, "least_seconds", least_seconds)
    kernels = CalibratedKernels(MADE_UP, H800, made_up())
    monkeypatch.setitem(vars(kernels), "memory_share", 0.75)
    batch = batch_of([gemm(4096, 1536, 2048), gemm(3000, 1536, 2048)])
    family = family_of(gemm(1, 1, 1))
    *_, provenance = kernels.compute(family, batch, np.full(2, 132.0), False, widths=False)
    assert provenance.tolist() == [MEASURED, INTERPOLATED]
    assert asked == [[1.0, 0.75]]


@pytest.mark.parametrize(
    ("own", "others", "share"),
    [(0.9, [0.8], 0.9), (None, [None, 0.8, 0.7], 0.8), (None, [None], 1.0), (None, [], 1.0)],
)
def test_the_fastest_row_is_an_own_one_or_that_of_another_calibration(own, others, share):
    kernels = SimpleNamespace(
        achieved=SimpleNamespace(memory=own),
        others=[SimpleNamespace(achieved=SimpleNamespace(memory=other)) for other in others],
    )
    assert CalibratedKernels.memory_share.func(kernels) == share


@pytest.mark.parametrize(("kind", "asked_of"), [("gemm", 40.0), ("rmsnorm", 40.0 * 132 / 80)])
def test_a_gpu_of_fewer_sms_asks_the_measured_one_for_as_many_or_for_the_same_share(
    monkeypatch, kind, asked_of
):
    """40 of 80 SMs: a product's tiles go over 40 of 132 as well, other kernels fill half of all."""
    calibration = CALIBRATION.model_copy(update={"completed_by": ()})
    kernels = CalibratedKernels(calibration, H800.model_copy(update={"sms": 80}), ROWS)
    found = []
    told = kernels.learned.told
    monkeypatch.setattr(
        kernels.learned,
        "told",
        lambda family, batch, on, at, **conditions: (
            found.append(on.tolist()) or told(family, batch, on, at, **conditions)
        ),
    )
    op = gemm(4096, 1536, 7168)
    if kind == "rmsnorm":
        op = operator("rmsnorm", dtype="bfloat16", rows=4096, columns=7168)
    kernels.compute(family_of(op), batch_of([op]), np.array([40.0]), False, widths=False)
    assert found == [[asked_of]]


def test_a_calibration_without_rows_needs_another_that_completes_it_or_that_it_is_restated_from():
    """And rows of transfers, or no kernel set at all."""
    transfers = [row for row in ROWS if row.kind == "dispatch"]
    for others in ({"completed_by": ("h200_sxm",)}, {"restated_from": ("h200_sxm",)}):
        calibration = CALIBRATION.model_copy(
            update={"completed_by": (), "restated_from": ()} | others
        )
        assert not CalibratedKernels(calibration, H800, transfers).families
        without_sets = calibration.model_copy(update={"kernel_sets": ()})
        assert not CalibratedKernels(without_sets, H800, []).families
        with pytest.raises(NotCalibrated, match="no measured compute kernel of the kernel sets"):
            CalibratedKernels(calibration, H800, [])
    alone = CALIBRATION.model_copy(update={"completed_by": (), "restated_from": ()})
    with pytest.raises(NotCalibrated, match="no measured compute kernel of the kernel sets"):
        CalibratedKernels(alone, H800, transfers)


def test_another_gpu_is_told_what_the_measured_one_was_and_restates_it():
    """What rows say is worked out once; only what follows from the ceilings is new."""
    calibration = CALIBRATION.model_copy(update={"completed_by": ()})
    faster, fastest = (
        CalibratedKernels(calibration, H800.model_copy(update={"hbm_bandwidth": rate}), ROWS)
        for rate in (4e12, 5e12)
    )
    assert faster.learned is fastest.learned
    op = gemm(4097, 1536, 7168)
    asked = family_of(op), batch_of([op]), np.array([132.0]), False
    faster.compute(*asked, widths=True)
    before = faster.learned.kept.cache_info()
    fastest.compute(*asked, widths=True)
    after = faster.learned.kept.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)


def test_answers_may_be_changed_and_what_is_known_stays():
    kernels = CalibratedKernels(CALIBRATION, H800, ROWS)
    op = gemm(4096, 1536, 7168)
    asked = family_of(op), batch_of([op]), np.array([132.0]), False
    first = kernels.compute(*asked, widths=True)
    values = [part.tolist() for part in first]
    for part in first:
        part[:] = 0
    assert [part.tolist() for part in kernels.compute(*asked, widths=True)] == values
