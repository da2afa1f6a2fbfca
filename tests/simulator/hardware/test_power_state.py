"""Kernel times of the power state that a job runs in."""

import pytest

from hardware_profiles.estimates import Estimate
from hardware_profiles.schema import load_calibration, load_gpu
from hardware_profiles.tables import Measurement, write_measurements
from simulator.hardware.power_state import rows_for, slowdown

H200 = load_gpu("h200_sxm")


def row(kind, sizes, seconds, **conditions):
    return Measurement(
        kind=kind,
        sizes=tuple(sorted(sizes.items())),
        dtype="bfloat16",
        sms=132,
        seconds=seconds,
        spread=0.0,
        source="a test",
        conditions=tuple(sorted({"set": "dsv3sim_mixed", **conditions}.items())),
    )


def copy(columns, seconds, **conditions):
    return row("copy", {"rows": 4096, "columns": columns}, seconds, **conditions)


def turns(job, clock_hz="1.65e9"):
    return {"state": "sustained", "job": job, "clock_hz": clock_hz, "burst_clock_hz": "1.98e9"}


GEMM = row("gemm", {"m": 1000, "n": 1000, "k": 1000}, 10e-6)


@pytest.fixture
def calibration(tmp_path):
    """A calibration of given rows."""

    def of(rows, **values):
        path = tmp_path / "rows.csv"
        write_measurements(path, rows)
        named = {"measurements": (str(path),), "kernel_sets": ("dsv3sim_mixed",)}
        return load_calibration("h200_sxm_reference").model_copy(update=named | values)

    return of


def test_compute_slows_with_the_clock_and_memory_does_not():
    """2e9 FLOP over 989 TFLOP/s take 2.022 us and 6 MB over 4.8 TB/s 1.25 us: of a fifth more
    clock, the share 2.022 / 3.272 = 0.618 counts."""
    assert slowdown(GEMM, H200, clocks=1.2) == pytest.approx(1.1236, abs=1e-4)
    assert slowdown(copy(512, 1e-6), H200, clocks=1.2) == 1.0


def seconds_of(rows):
    return {(one.kind, dict(one.sizes).get("columns")): one.seconds for one in rows}


def test_a_sustained_job_takes_the_rows_timed_in_its_own_turns(calibration):
    """Of two rows of one operator those of the same kind of job count; an operator that only
    another job's turns hold takes that one; the others go by the clock, 1.98 / 1.65 = 1.2."""
    table = calibration(
        [
            GEMM,
            copy(512, 5e-6),
            copy(512, 6e-6, **turns("prefill")),
            copy(512, 7e-6, **turns("train_microbatch")),
            copy(1024, 9e-6, **turns("train_microbatch")),
            copy(2048, 4e-6),
        ]
    )
    assert seconds_of(rows_for(table, "prefill")) == {
        ("copy", 512): 6e-6,
        ("copy", 1024): pytest.approx(9e-6),
        ("copy", 2048): 4e-6,
        ("gemm", None): pytest.approx(11.236e-6, rel=1e-4),
    }
    assert seconds_of(rows_for(table, "train_microbatch"))["copy", 512] == pytest.approx(7e-6)


def test_several_turns_of_one_operator_count_as_their_geometric_mean(calibration):
    table = calibration([copy(512, s, **turns("prefill")) for s in (4e-6, 9e-6)])
    (only,) = rows_for(table, "prefill")
    assert only.seconds == pytest.approx(6e-6)


def test_a_decode_step_takes_bursts(calibration):
    table = calibration([copy(512, 5e-6), copy(512, 6e-6, **turns("prefill"))])
    assert seconds_of(rows_for(table, "decode_step")) == {("copy", 512): 5e-6}


def test_rows_without_turns_go_by_the_clock_that_the_calibration_states(calibration):
    clock = Estimate(value=1 / 1.2, low=0.8, high=0.9, source="a test")
    stated = calibration([GEMM], sustained_clock=clock)
    assert rows_for(stated, "prefill")[0].seconds == pytest.approx(11.236e-6, rel=1e-4)
    assert rows_for(calibration([GEMM]), "prefill")[0].seconds == 10e-6


def test_a_decode_step_takes_the_rows_timed_where_they_stand_in_one(calibration):
    """They stand for the burst of the same operator, in decode alone."""
    table = calibration(
        [
            copy(512, 5e-6),
            copy(512, 5.6e-6, state="in_order", job="decode_step", clock_hz="1.98e9"),
            copy(1024, 9e-6),
        ]
    )
    assert seconds_of(rows_for(table, "decode_step")) == {
        ("copy", 512): pytest.approx(5.6e-6),
        ("copy", 1024): 9e-6,
    }
    assert seconds_of(rows_for(table, "prefill")) == {("copy", 512): 5e-6, ("copy", 1024): 9e-6}
