import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardware_profiles.tables import load_measurements, table_path, write_measurements
from simulator.calibration.traces import import_trace

TRACE = Path(__file__).resolve().parents[4] / "shared/measured/h800/deepseek_train_profile.json"
needs_trace = pytest.mark.skipif(not TRACE.exists(), reason=f"{TRACE} is not there")


def test_launches_of_one_operator_become_one_row_with_their_spread(
    overlapped_profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    trace = overlapped_profile.write(tmp_path / "trace.json.gz")
    result = import_trace(trace, mapping=made_up_mapping, gpu="h800_sxm")
    rows = {row.kind: row for row in result.measurements}
    assert set(rows) == {"gemm", "quantize", "dispatch"}
    gemm = rows["gemm"]
    assert dict(gemm.sizes) == {"m": 14336, "n": 4096, "k": 7168}
    assert gemm.seconds == pytest.approx(400e-6)
    assert gemm.sms == 112
    assert dict(gemm.conditions) == {
        "set": "made_up",
        "out_dtype": "bfloat16",
        "repeats": "2",
        "pair": "yes",
        "all_to_all": "0.875",
    }
    assert rows["dispatch"].seconds == pytest.approx(500e-6)
    assert rows["dispatch"].spread == pytest.approx(400 / 2**0.5 / 500)
    assert rows["dispatch"].condition("beside") == "compute"
    assert rows["dispatch"].condition("nodes") == "8"
    assert result.read_by == ("made_up, 0.0% of the kernel time unmapped",)
    assert (result.unmapped, result.warnings) == ((), ())


def test_rows_read_back_from_the_table_they_are_written_to(
    overlapped_profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    result = import_trace(
        overlapped_profile.write(tmp_path / "trace.json"), mapping=made_up_mapping
    )
    write_measurements(tmp_path / "rows.csv", result.measurements)
    assert len(load_measurements(tmp_path / "rows.csv")) == len(result.measurements)


def test_what_stays_unmapped_is_listed_with_its_time_and_reason(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.launch("gemm", called=0, at=10, us=60)
    profile.launch("strange", called=10, at=80, us=30)
    profile.launch("barrier", called=20, at=120, us=10)
    profile.launch("gemm", called=30, at=140, us=-5)
    result = import_trace(profile.write(tmp_path / "trace.json"), mapping=made_up_mapping)
    assert [(u.name, u.kernels, u.reason) for u in result.unmapped] == [
        ("strange", 1, "no rule of the mapping covers it"),
        ("wait", 1, "waits for other ranks"),
    ]
    assert result.read_by == ("made_up, 40.0% of the kernel time unmapped",)
    assert result.warnings == ("trace.json: 1 x kernel with a negative duration: event 7",)


def test_an_operator_of_no_measurable_time_is_no_row_but_a_warning(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.launch("gemm", called=0, at=10, us=0)
    result = import_trace(profile.write(tmp_path / "trace.json"), mapping=made_up_mapping)
    assert result.measurements == ()
    assert result.warnings == ("trace.json: 1 x operator of no measurable time: product",)


def test_a_trace_from_another_device_is_an_error(
    overlapped_profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    trace = overlapped_profile.write(tmp_path / "trace.json")
    with pytest.raises(ValueError, match="not on h200_sxm"):
        import_trace(trace, mapping=made_up_mapping, gpu="h200_sxm")


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    times=st.lists(
        st.tuples(
            st.sampled_from(["gemm", "cast", "all_to_all", "barrier", "matmul", "x"]),
            st.integers(0, 300) | st.floats(0, 300),
            st.integers(-1, 300),
            st.sampled_from([7, 23, 27]),
            st.integers(0, 5000),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_kernel_becomes_a_row_an_unmapped_kernel_or_a_warning(
    made_up_mapping: str, tmp_path: Path, times: list[tuple[str, float, int, int, int]]
) -> None:
    events: list[dict[str, Any]] = [
        {"ph": "X", "cat": "user_annotation", "name": "layer", "tid": 1, "ts": 0, "dur": 900}
    ]
    for number, (name, at, us, stream, grid) in enumerate(times):
        call = {"correlation": number}
        kernel = {**call, "stream": stream, "grid": [grid, 1, 1], "block": [128, 1, 1]}
        common = {"ph": "X", "tid": 1}
        events += [
            {**common, "cat": "cuda_runtime", "name": "launch", "ts": at, "dur": 1, "args": call},
            {**common, "cat": "kernel", "name": name, "ts": at + 5, "dur": us, "args": kernel},
        ]
    device = {"name": "NVIDIA H800", "numSms": 132}
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"deviceProperties": [device], "traceEvents": events}))
    negative = sum(us < 0 for _, _, us, _, _ in times)
    try:
        result = import_trace(path, mapping=made_up_mapping)
    except ValueError as error:
        assert negative == len(times)
        assert "no GPU kernel" in str(error)  # noqa: PT017
        return
    unmapped = sum(entry.kernels for entry in result.unmapped)
    # The two casts of a layer are one launch, because their rule names the annotation.
    rows = sum(int(row.condition("repeats")) for row in result.measurements)
    assert rows <= len(times) - negative - unmapped
    assert bool(negative) == any("negative" in warning for warning in result.warnings)
    if not any("no measurable time" in warning for warning in result.warnings):
        kernels = {"second": 2}
        expected = sum(
            int(row.condition("repeats")) * kernels.get(row.source.split(": ")[1], 1)
            for row in result.measurements
        )
        assert expected == len(times) - negative - unmapped
    assert all(row.seconds > 0 for row in result.measurements)


@pytest.mark.shared
@needs_trace
def test_the_published_trace_gives_the_rows_of_the_shipped_table() -> None:
    result = import_trace(TRACE, mapping="deepseek_training_profile", gpu="h800_sxm")

    def keyed(rows: Any) -> dict[Any, Any]:
        return {(r.kind, r.sizes, r.dtype, r.out_dtype, r.sms): r for r in rows}

    shipped = keyed(
        row
        for row in load_measurements(table_path("h800_sxm"))
        if row.kernel_set == "deepseek_training"
    )
    imported = keyed(result.measurements)
    assert imported.keys() == shipped.keys()
    for key, row in imported.items():
        assert row.seconds == pytest.approx(shipped[key].seconds, rel=0.005)
        assert row.all_to_all_share == pytest.approx(shipped[key].all_to_all_share, abs=0.01)
    # Waits for other ranks are no operator, and nothing else of weight is left out.
    others = [u for u in result.unmapped if u.reason != "barrier and wait for slower ranks"]
    assert sum(u.seconds for u in others) < 30e-6
    assert result.read_by == ("deepseek_training_profile, 13.4% of the kernel time unmapped",)
    assert result.warnings == ()


def test_a_layer_profile_of_the_reference_model_gives_its_operators() -> None:
    path = Path(__file__).resolve().parents[2] / "reference_model/data/moe_layer_h200.json"
    result = import_trace(path, gpu="h200_sxm")
    rows = {(row.kind, row.sizes, row.dtype, row.accumulate): row for row in result.measurements}
    o_proj = rows["gemm", (("k", 16384), ("m", 4096), ("n", 7168)), "fp8_e4m3", False]
    # The nvjet kernel takes 716 us; copies of its scales and their gaps are part of the operator.
    assert 716e-6 < o_proj.seconds < 730e-6
    assert "dispatch" not in {row.kind for row in result.measurements}
    assert {entry.name for entry in result.unmapped} >= {"moe.dispatch", "moe.combine"}
    assert result.read_by == ("reference_model_profile, 6.9% of the kernel time unmapped",)
