"""Low-latency all-to-all: published rows come back, other sizes follow bytes."""

from math import log2
from pathlib import Path

import numpy as np
import pytest
import yaml

from hardware_profiles.low_latency_kernels import (
    FOLDER,
    fp8_row_bytes,
    known_low_latency,
    load_low_latency,
    message_bytes,
    wire_time,
)

SHARED = Path(__file__).parents[3] / "shared"
TABLE = SHARED / "measured/public/h100_sxm/comm/sglang/0.5.6.post2/wideep_deepep_ll_perf.parquet"


@pytest.mark.parametrize("name", known_low_latency())
@pytest.mark.parametrize("operation", ["dispatch", "combine"])
def test_the_published_rows_come_back(name, operation):
    profile = load_low_latency(name)
    for row in profile.rows:
        wire = wire_time(
            profile,
            operation,
            copies=profile.tokens * profile.top_k * profile.crossing(row.ranks, profile.domain),
            message=message_bytes(profile.hidden, dispatched=fp8_row_bytes(profile.hidden))[
                operation
            ],
            ranks=row.ranks,
            link_bandwidth=profile.link_bandwidth,
        )
        total = wire + profile.intercept(operation, row.ranks)
        assert total == pytest.approx(getattr(row, operation), rel=1e-9)


def test_bytes_of_a_copy_are_those_that_deepep_counts():
    assert message_bytes(7168, dispatched=fp8_row_bytes(7168)) == {
        "dispatch": 7168 + 224 + 16,
        "combine": 14336,
    }


def test_half_the_copies_take_half_the_wire_time_and_twice_the_link_too():
    profile = load_low_latency("deepep_h800_rdma")

    def wire(copies, bandwidth):
        return wire_time(
            profile, "combine", copies=copies, message=14336, ranks=144, link_bandwidth=bandwidth
        )

    assert wire(512, 50e9) == pytest.approx(wire(1024, 50e9) / 2)
    assert wire(1024, 100e9) == pytest.approx(wire(1024, 50e9) / 2)


def test_a_group_size_between_rows_achieves_what_lies_between():
    profile = load_low_latency("deepep_h800_rdma")
    at_64, at_72, at_128 = (profile.fraction("dispatch", ranks) for ranks in (64, 72, 128))
    assert at_128 < at_72 < at_64
    assert profile.fraction("dispatch", 320) == profile.fraction("dispatch", 256)
    assert profile.covers(72)
    assert not profile.covers(320)
    assert not profile.is_measured(72)


def test_few_tokens_take_longer_through_nics_than_over_nvlink_and_longer_among_more_nodes():
    inside = load_low_latency("deepep_h200_nvlink")
    for name in ("deepep_h800_rdma", "deepep_h800_mixed", "deepep_h100_mixed"):
        beyond = load_low_latency(name)
        assert inside.intercept("dispatch", 8) == pytest.approx(11.9e-6)
        assert beyond.intercept("dispatch", 16) == pytest.approx(20.3e-6)
        # Three nodes lie log2(24 / 16) = 0.585 of the way from two to four.
        between = 20.3e-6 + log2(1.5) * (25.7e-6 - 20.3e-6)
        assert beyond.intercept("dispatch", 24) == pytest.approx(between)
        assert beyond.intercept("dispatch", 320) == pytest.approx(25.7e-6)
        assert beyond.intercept("combine", 16, "low") == pytest.approx(19.0e-6)


def measured(operation, nodes):
    """[rows, 2], tokens and microseconds of the published table's rows of so many nodes."""
    from pyarrow.parquet import read_table

    rows = read_table(TABLE, filters=[("node_num", "=", nodes)]).to_pylist()
    return np.array([(row["num_token"], row[f"{operation}_avg_t_us"]) for row in rows])


def line(points):
    """Intercept and slope of the line of least relative error."""
    tokens, times = points.T
    found = np.linalg.lstsq(np.stack([1 / times, tokens / times], axis=1), np.ones(len(times)))
    return found[0]


@pytest.mark.shared
@pytest.mark.skipif(not TABLE.exists(), reason="no measured data beside the checkout")
@pytest.mark.parametrize(
    ("operation", "nodes", "median", "largest"),
    [
        ("dispatch", 2, 0.018, 0.084),
        ("dispatch", 4, 0.013, 0.065),
        ("combine", 2, 0.044, 0.089),
        ("combine", 4, 0.018, 0.063),
    ],
)
def test_intercepts_are_those_of_the_published_rows_and_predict_rows_left_out(
    operation, nodes, median, largest
):
    points = measured(operation, nodes)
    shipped = load_low_latency("deepep_h100_mixed").intercept(operation, 8 * nodes)
    assert round(line(points)[0], 1) == pytest.approx(shipped * 1e6)
    errors = []
    for tokens in np.unique(points[:, 0]):
        left_out = points[:, 0] == tokens
        intercept, slope = line(points[~left_out])
        errors += list(abs((intercept + slope * tokens) / points[left_out, 1] - 1))
    assert round(float(np.median(errors)), 3) == median
    assert round(max(errors), 3) == largest


@pytest.mark.parametrize(
    ("name", "ranks", "domain", "share"),
    [
        ("deepep_h800_nvlink", 8, 8, 1.0),
        ("deepep_h800_rdma", 16, 8, 15 / 16),
        ("deepep_h800_mixed", 16, 8, 1 / 2),
        ("deepep_h800_mixed", 64, 8, 7 / 8),
        ("deepep_h800_mixed", 144, 72, 1 / 2),
        ("deepep_h800_mixed", 4, 8, 0.0),
    ],
)
def test_copies_that_stay_cross_no_nic(name, ranks, domain, share):
    assert load_low_latency(name).crossing(ranks, domain) == share


def test_a_mixed_group_sends_what_leaves_the_node_at_the_published_rate():
    # 128 tokens on two nodes: 512 of 1,024 copies leave, of 7,408 bytes in (118 - 20.3) us.
    profile = load_low_latency("deepep_h800_mixed")
    rate = 512 * 7408 / (118e-6 - 20.3e-6)
    assert profile.fraction("dispatch", 16) * 50e9 == pytest.approx(rate)
    # A smaller intercept leaves the same bytes more time.
    slower = 512 * 7408 / (118e-6 - 19.8e-6)
    assert profile.fraction("dispatch", 16, "low") * 50e9 == pytest.approx(slower)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"within": None}, "within is needed with link mixed"),
        ({"domain": None}, "domain is needed with link mixed"),
        ({"link": "nic"}, "domain is needed with link mixed, and only then"),
        ({"within": "deepep_h800_rdma"}, "within: link nic; allowed: a profile of link nvlink"),
        ({"domain": 16}, "rows: ranks 16; allowed with link mixed: more than 16"),
        ({"intercepts": []}, r"intercepts: ranks \[\]; allowed: at least one, ascending"),
        (
            {"rows": [{"ranks": 16, "dispatch": "118 us", "combine": "15 us"}]},
            "combine among 16 ranks takes 15 us; allowed: more than the highest intercept, 27.2 us",
        ),
    ],
)
def test_a_profile_that_does_not_fit_its_form_is_one_clear_line(tmp_path, changes, message):
    raw = yaml.safe_load((FOLDER / "deepep_h800_mixed.yaml").read_text()) | changes
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=message) as error:
        load_low_latency(str(path))
    assert "\n" not in str(error.value)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="known: deepep_h100_mixed"):
        load_low_latency("deepep")
