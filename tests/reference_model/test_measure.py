import csv

import pytest
import torch

from reference_model import measure
from reference_model.gpu import local_choices
from reference_model.kernels.device import check_multiple
from reference_model.measure_grid import (
    ALL_SMS,
    gemm_operator,
    weight_gradient,
)

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")


@pytest.fixture
def without_gpu(monkeypatch):
    """The parts of measure() that need a GPU, replaced."""
    monkeypatch.setattr(measure, "require_hopper", lambda: torch.device("cpu"))
    monkeypatch.setattr(measure, "use_kernels", lambda kernels: None)
    monkeypatch.setattr(measure, "device_source", lambda _: "a test")
    monkeypatch.setattr(measure, "multiprocessors", lambda: ALL_SMS)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def request(m: int, sms: int = ALL_SMS) -> measure.TimingRequest:
    return measure.TimingRequest(gemm_operator(m, 256, 128), "library", sms, partition=False)


def lines(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path, without_gpu, monkeypatch, capsys):
    asked = []

    def time_request(request):
        asked.append(request.operator["m"])
        return 1e-4, 0.01, "graph"

    monkeypatch.setattr(measure, "time_request", time_request)
    out = tmp_path / "table.csv"
    measure.measure([request(16), request(32)], out=out, deadline_s=60)
    measure.measure([request(16), request(32), request(64)], out=out, deadline_s=60)
    assert asked == [16, 32, 64]
    assert [line["sizes"] for line in lines(out)] == [
        "k=128;m=16;n=256",
        "k=128;m=32;n=256",
        "k=128;m=64;n=256",
    ]
    assert "[3/3] gemm k=128;m=64;n=256 fp8_e4m3 library 132 SMs: 1.0000e-04 s" in (
        capsys.readouterr().out
    )


def test_a_row_says_under_which_conditions_it_was_measured(tmp_path, without_gpu, monkeypatch):
    monkeypatch.setattr(measure, "time_request", lambda _: (1e-4, 0.01, "graph"))
    out = tmp_path / "table.csv"
    gradient = measure.TimingRequest(weight_gradient(256, 128, 512), "triton", 112, partition=True)
    measure.measure([gradient, request(16, sms=108)], out=out, deadline_s=60)
    first, second = lines(out)
    assert first["conditions"] == (
        "accumulate=1;limit=green_context;out_dtype=float32;repeats=7;set=dsv3sim_triton;"
        "statistic=median;timing=graph"
    )
    assert "limit=sm_carveout" in second["conditions"]
    assert second["sms"] == "108"


def test_rows_of_changed_kernels_are_dropped_and_measured_anew(tmp_path, without_gpu, monkeypatch):
    times = iter((1e-4, 2e-4, 3e-4))
    monkeypatch.setattr(measure, "time_request", lambda _: (next(times), 0.01, "graph"))
    out = tmp_path / "table.csv"
    assert measure.forget([request(16)], out=out) == 0
    measure.measure([request(16), request(32)], out=out, deadline_s=60)
    assert measure.forget([request(16), request(64)], out=out) == 1
    measure.measure([request(16), request(32)], out=out, deadline_s=60)
    assert [(line["sizes"], line["seconds"]) for line in lines(out)] == [
        ("k=128;m=32;n=256", "0.0002"),
        ("k=128;m=16;n=256", "0.0003"),
    ]


def test_an_operator_that_does_not_fit_is_named_and_left_out(
    tmp_path, without_gpu, monkeypatch, capsys
):
    def time_request(request):
        if request.operator["m"] == 16:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 1e-4, 0.01, "graph"

    monkeypatch.setattr(measure, "time_request", time_request)
    out = tmp_path / "table.csv"
    measure.measure([request(16), request(32)], out=out, deadline_s=60)
    assert len(lines(out)) == 1
    assert "gemm k=128;m=16;n=256 fp8_e4m3 library 132 SMs: out of memory" in (
        capsys.readouterr().err
    )


def test_a_table_with_other_columns_is_refused(tmp_path, without_gpu):
    out = tmp_path / "table.csv"
    out.write_text("kind,seconds\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"table.csv: columns are \['kind', 'seconds'\]"):
        measure.measure([request(16)], out=out, deadline_s=60)


@NO_GPU
def test_without_a_gpu_the_command_says_so(tmp_path):
    with pytest.raises(ValueError, match="no CUDA device found"):
        measure.measure([], out=tmp_path / "table.csv", deadline_s=60)


def test_local_choices_are_even_and_exactly_as_many_as_asked():
    chosen = local_choices(
        torch.zeros((1, 8), dtype=torch.int64), rows=100, local_experts=4, expert_rows=128
    )
    local = chosen[chosen >= 0]
    assert chosen.shape == (100, 8)
    assert torch.bincount(local).tolist() == [32, 32, 32, 32]
    assert ((chosen >= 0).sum(dim=1) >= 1).all()
    with pytest.raises(ValueError, match="expert_rows = 90"):
        local_choices(
            torch.zeros((1, 8), dtype=torch.int64), rows=100, local_experts=4, expert_rows=90
        )


def test_a_size_that_cannot_be_addressed_is_named():
    with pytest.raises(ValueError, match="k = 200: allowed multiples of 16"):
        check_multiple(k=200)
