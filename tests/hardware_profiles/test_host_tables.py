"""What the tables of a host's GPUs hold: the figures that are read off them."""

from statistics import median

import pytest

from hardware_profiles.fields import ROOT
from hardware_profiles.tables import load_measurements, table_path, write_measurements

TABLES = (
    "h200_sxm_alike", "h200_sxm_alike_hosts", "h200_sxm_collectives", "h200_sxm_collectives_2",
    "h200_sxm_collectives_3", "h200_sxm_expert_parallel", "h200_sxm_expert_parallel_graph",
    "h200_sxm_expert_parallel_graph_2", "h200_sxm_pair", "h200_sxm_pair_both_3",
    "h200_sxm_pair_both_4", "h200_sxm_pair_both_5", "h200_sxm_pair_both_6", "h200_sxm_pair_four",
    "h200_sxm_pair_four_2",
)  # fmt: skip


def rows(name):
    return load_measurements(table_path(f"host/{name}"))


@pytest.mark.parametrize("name", TABLES)
def test_writing_a_table_that_was_read_gives_the_same_file(name, tmp_path):
    again = tmp_path / "again.csv"
    write_measurements(again, rows(name))
    assert again.read_bytes() == (ROOT / f"measurements/host/{name}.csv").read_bytes()


@pytest.mark.parametrize(
    ("kind", "milliseconds"),
    [
        ("gemm", [0.2008, 0.1988, 0.2020, 0.2005]),
        ("attention_forward", [1.388, 1.371, 1.393, 1.378]),
    ],
)
def test_four_gpus_of_one_host_differ_by_less_than_two_percent(kind, milliseconds):
    times = [
        median(
            row.seconds
            for row in rows("h200_sxm_alike")
            if (row.kind, row.condition("busy"), row.condition("gpu")) == (kind, "all", gpu)
        )
        for gpu in "0123"
    ]
    assert [time * 1e3 for time in times] == pytest.approx(milliseconds, rel=5e-4)
    assert max(times) / min(times) == pytest.approx(1.016, abs=5e-4)


def test_bytes_on_the_wire_carry_an_all_to_all_from_two_gpus_to_four():
    """Half of 1 GiB leaves a GPU of two, three quarters leave one of four."""
    seconds = {
        dict(row.sizes)["ranks"]: row.seconds
        for row in rows("h200_sxm_collectives")
        if row.kind == "all_to_all"
        and dict(row.sizes)["bytes"] == 2**30
        and row.kernel_set == "dsv3sim_links"
    }
    assert seconds == {2: pytest.approx(1.640e-3, rel=1e-3), 4: pytest.approx(2.418e-3, rel=1e-3)}
    assert seconds[4] / seconds[2] == pytest.approx(1.474, abs=1e-3)  # 1.5 by bytes


def test_the_gpu_with_the_most_rows_is_waited_for():
    """Forward combine of the first layer of an uneven training step."""
    found = {
        dict(row.sizes)["expert_rows"]: float(row.condition("waiting_s"))
        for row in rows("h200_sxm_expert_parallel")
        if row.kind == "combine"
        and [row.condition(name) for name in ("job", "phase", "layer", "skew")]
        == ["train", "forward", "0", "1"]
    }
    assert found == {
        44604: 0.0,
        35751: pytest.approx(0.980e-3, rel=1e-3),
        28274: pytest.approx(2.485e-3, rel=1e-3),
        22443: pytest.approx(3.337e-3, rel=1e-3),
    }


def waiting(job, skew, kind, layer):
    """Seconds by the rows of a GPU's experts, forward, steps replayed from graphs."""
    return {
        dict(row.sizes)["expert_rows"]: float(row.condition("waiting_s"))
        for row in rows("h200_sxm_expert_parallel_graph")
        if row.kind == kind
        and [row.condition(name) for name in ("job", "phase", "layer", "skew")]
        == [job, "forward", layer, skew]
    }


def test_in_a_graph_gpus_wait_for_rows_and_for_no_host():
    """Forward combine of the first layer: uneven training by rows, decode by next to nothing."""
    assert waiting("train", "1", "combine", "0") == {
        44604: 0.0,
        35751: pytest.approx(0.985e-3, rel=1e-3),
        28274: pytest.approx(1.543e-3, rel=1e-3),
        22443: pytest.approx(2.196e-3, rel=1e-3),
    }
    even = waiting("decode", "0", "combine", "0")
    assert even[1046] == max(even.values()) == pytest.approx(9.54e-6, rel=1e-3)


def test_two_hosts_of_four_gpus_take_the_same_time_for_a_collective():
    """All-to-all of 1 GiB and 1 MiB between four, launched in advance, in ms."""
    for size, first, second in ((2**30, 2.405, 2.390), (2**20, 0.01423, 0.01421)):
        found = [
            row.seconds * 1e3
            for name in ("h200_sxm_collectives", "h200_sxm_collectives_2")
            for row in rows(name)
            if row.kind == "all_to_all"
            and dict(row.sizes) == {"bytes": size, "ranks": 4}
            and row.kernel_set == "dsv3sim_links_queued"
        ]
        assert found == pytest.approx([first, second], rel=1e-3)


def test_pairs_of_two_hosts_of_four_gpus_differ_by_less_than_a_percent():
    """GPU 0 with 2, 8 and 20 SMs, in ms."""
    found = [
        {
            dict(row.sizes)["communication_sms"]: 1e3 * row.seconds
            for row in rows(name)
            if row.kind == "pair" and row.condition("rank") == "0"
        }
        for name in ("h200_sxm_pair_four", "h200_sxm_pair_four_2")
    ]
    assert found == [
        pytest.approx({2: 67.23, 8: 41.33, 20: 42.92}, abs=0.01),
        pytest.approx({2: 66.82, 8: 41.17, 20: 42.84}, abs=0.01),
    ]


def test_a_pair_that_hides_its_transfers_takes_as_long_as_its_compute_and_a_few_percent():
    """4,096 tokens, GPU 0: 4 SMs hide 21.3 ms of transfers, 1 SM leaves 51 of 77 ms exposed."""
    found = {
        (row.kind, dict(row.sizes)["communication_sms"]): row.seconds
        for row in rows("h200_sxm_pair")
        if row.condition("rank") == "0"
        and dict(row.sizes).get("tokens") == 4096
        and row.kind in ("pair", "compute", "communication")
    }
    assert found["communication", 4] == pytest.approx(21.32e-3, rel=1e-3)
    assert found["pair", 4] / found["compute", 4] == pytest.approx(1.062, abs=1e-3)
    assert found["pair", 1] - found["compute", 1] == pytest.approx(51.5e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "slower"),
    [("dispatch", [1.67, 1.74, 1.77, 1.74, 1.65]), ("combine", [1.43, 1.37, 1.41, 1.39, 1.37])],
)
def test_transfers_of_a_pair_slow_down_beside_compute_however_few_sms_copy(kind, slower):
    """4,096 tokens, GPU 0, 1 to 20 SMs: the two of a layer beside compute over the two alone."""
    found = [
        sum(float(row.condition("beside_s")) for row in of_kind)
        / sum(float(row.condition("alone_s")) for row in of_kind)
        for sms in ("1", "2", "4", "8", "20")
        if (
            of_kind := [
                row
                for row in rows("h200_sxm_pair")
                if (row.kind, row.condition("tokens"), row.condition("communication_sms"))
                == (kind, "4096", sms)
            ]
        )
    ]
    assert found == pytest.approx(slower, abs=5e-3)
