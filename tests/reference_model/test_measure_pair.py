"""Pairs on two CPU ranks, as rows."""

import csv

import pytest

from reference_model.config import load_model_config
from reference_model.measure_pair import (
    measure_pair,
    operator_row,
    rest_of_compute,
    whole_row,
)
from tests.reference_model.test_pair import order

DEBUG = load_model_config("debug")


def test_a_pair_on_two_cpus_fills_a_table(tmp_path):
    out = tmp_path / "pair.csv"
    measure_pair(
        DEBUG, order(1), model="debug", sizes=[(1, 128)], programs=(2,), seconds=0.0,
        ranks=2, backend="gloo", out=out, timeout_s=120.0,
    )  # fmt: skip
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wholes = [row for row in rows if row["kind"] == "pair"]
    assert [row["sizes"] for row in wholes] == ["communication_sms=2;tokens=128"] * 2  # two ranks
    operators = [row for row in rows if row["kind"] != "pair"]
    names = {row["conditions"] for row in operators}
    assert len(names) == len(operators)
    assert sum("operator=moe.dispatch;" in name for name in names) == 2
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_rows_say_what_ran_beside_and_on_how_many_sms():
    of_run = {
        "tokens": 4096, "programs": 20, "sms": 132, "source": "here",
        "common": {"model": "debug", "layers": 1, "ranks": 1, "rank": 0, "set": "dsv3sim_mixed",
                   "launch": "graph"},
    }  # fmt: skip
    pair = whole_row("pair", 0.05, 0.01, exposed=0.0002, **of_run)
    communication = whole_row("communication", 0.007, 0.02, exposed=None, **of_run)
    gemm = operator_row(
        ("compute", "q", "forward"), 1.1e-4, "gemm", "k=8;m=4;n=2", "fp8_e4m3",
        alone=1e-4, beside=1.2e-4, **of_run,
    )  # fmt: skip
    common = "launch=graph;layers=1;model=debug"
    assert pair.cells() == (
        "pair", "communication_sms=20;tokens=4096", "fp8_e4m3", "132", "0.05", "0.01", "here",
        f"exposed_s=0.0002;{common};rank=0;ranks=1;set=dsv3sim_mixed;statistic=median;timing=events",
    )  # fmt: skip
    assert "exposed_s" not in communication.conditions
    assert (gemm.kind, gemm.sizes, gemm.sms, gemm.seconds) == ("gemm", "k=8;m=4;n=2", 112, 1.1e-4)
    assert gemm.conditions == (
        f"alone_s=0.0001;beside_s=0.00012;communication_sms=20;{common};operator=q;phase=forward;rank=0;ranks=1;"
        "set=dsv3sim_mixed;statistic=mean;stream=compute;timing=clock;tokens=4096"
    )


def test_one_rank_is_refused():
    with pytest.raises(ValueError, match="ranks = 1: allowed at least 2, that divide 8 routed"):
        measure_pair(
            DEBUG, order(1), model="debug", sizes=[(1, 128)], programs=(2,), seconds=0.0,
            ranks=1, backend="gloo", out=None, timeout_s=1.0,
        )  # fmt: skip


def test_compute_rests_for_what_transfers_have_left_when_it_is_through():
    """Two layers. Compute takes 2 x (3 + 1) = 8 s beside transfers, which take 2 x 5 = 10 s beside
    it and 2 x 3 = 6 s alone: when it is through a fifth of them is left, 1.2 s."""
    compute, send = ("compute", "gemm", "forward"), ("communication", "dispatch", "forward")
    norm, unseen = ("compute", "norm", "forward"), ("communication", "cast", "forward")
    issued = {compute: 2, norm: 2, send: 2, unseen: 2}
    alone = {key: (s, "", "", "") for key, s in ((compute, 2.5), (norm, 1.0), (send, 3.0))}
    beside = {key: (s, "", "", "") for key, s in ((compute, 3.0), (norm, 1.0), (send, 5.0))}
    assert rest_of_compute(issued, alone, beside) == pytest.approx(1.2)
    shorter = beside | {send: (4.0, "", "", "")}
    assert rest_of_compute(issued, alone, shorter) == 0.0
    assert rest_of_compute({compute: 2}, alone, beside) == 0.0
