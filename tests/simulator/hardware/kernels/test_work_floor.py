"""More work takes no less time: attention by its rows, products by what more rows would take."""

import math

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from reference_model.trace import Operator
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels import work_floor
from simulator.hardware.kernels.families import calibration_measurements
from simulator.hardware.kernels.roofline import batch_of
from simulator.hardware.kernels.work_floor import (
    RisingRows,
    WorkFloor,
    _at_once,
    _scanned,
    rising,
)

SEQUENCES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512])
CONTEXTS = np.array([1024, 1536, 2048, 3000, 4096, 8192, 16384, 32768, 65536])
ROUNDING = 1e-9
FEW, LARGEST_DIP = 3, 0.03
"""Below so many sequences no row lies at the context itself, and a dip of less remains."""


def decode(sequences, kv_length):
    sizes = {
        "sequences": sequences, "kv_length": kv_length, "query_length": 1,
        "heads": 128, "latent_dim": 512, "rope_dim": 64,
    }  # fmt: skip
    return Operator(
        name="attention.core",
        kind="mla_decode",
        phase="forward",
        segment="attention",
        dtype="bfloat16",
        out_dtype="bfloat16",
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=False,
    )


def floor_of(*rows, sms=132.0):
    operators = [decode(sequences, length) for sequences, length, _ in rows]
    seconds = np.log([seconds for *_, seconds in rows])
    return WorkFloor(batch_of(operators), np.full(len(rows), sms), seconds)


def raised(floor, sequences, kv_length, seconds, *, sms=132.0):
    batch = batch_of([decode(sequences, kv_length)])
    return float(np.exp(floor.raise_to(np.log([seconds]), batch, np.array([sms]))[0]))


def test_more_of_any_size_takes_at_least_the_longest_smaller_row():
    floor = floor_of((1, 1024, 20.0), (16, 1024, 25.0), (1, 4096, 22.0))
    assert raised(floor, 8, 1024, 10.0) == pytest.approx(20)
    assert raised(floor, 8, 8192, 10.0) == pytest.approx(22)
    assert raised(floor, 16, 8192, 10.0) == pytest.approx(25)


def test_operators_are_compared_a_few_at_a_time_with_the_same_result(monkeypatch):
    floor = floor_of((1, 1024, 20.0), (16, 1024, 25.0), (1, 4096, 22.0))
    batch = batch_of([decode(8, 1024), decode(8, 8192), decode(16, 8192), decode(1, 512)])
    sms = np.full(4, 132.0)
    monkeypatch.setattr(work_floor, "MOST_PAIRS", 1)
    found = np.exp(floor.raise_to(np.log(np.full(4, 10.0)), batch, sms))
    assert found == pytest.approx([20, 22, 25, 10])


def test_operators_are_compared_in_260_thousand_pairs_at_once():
    assert [_at_once(rows) for rows in (1, 1000, 2**19)] == [262_144, 263, 1]


def test_a_longer_time_stays():
    assert raised(floor_of((1, 1024, 20.0)), 8, 2048, 30.0) == pytest.approx(30)


def test_a_row_says_nothing_of_less_work():
    floor = floor_of((16, 4096, 50.0))
    assert raised(floor, 8, 8192, 10.0) == pytest.approx(10)
    assert raised(floor, 16, 2048, 10.0) == pytest.approx(10)


def test_more_sms_shorten_a_row_by_no_more_than_their_share():
    floor = floor_of((16, 4096, 50.0))
    assert raised(floor, 16, 4096, 10.0, sms=108.0) == pytest.approx(50)
    assert raised(floor, 16, 4096, 10.0, sms=148.0) == pytest.approx(50 * 132 / 148)


@pytest.mark.parametrize(
    ("calibration", "cluster"),
    [
        ("h800_decode", "h800_2048"),
        ("h800_sxm", "h800_2048"),
        ("h200_sxm_reference", "h200_8"),
        ("h800_decode", "gb200_nvl72"),
        ("h20_sxm", "h20_32"),
        ("gb200_reference", "gb200_nvl72"),
    ],
)
def test_attention_of_more_sequences_or_longer_contexts_takes_no_less(calibration, cluster):
    profile = load_calibration(calibration)
    costs = KernelCostModel(
        cluster=load_cluster(cluster), calibration=profile, expert_parallel_ranks=8
    ).fit(calibration_measurements(profile))
    operators = [decode(int(s), int(length)) for s in SEQUENCES for length in CONTEXTS]
    sms = costs.cluster.node.gpu.sms
    seconds = costs.predict(operators, sms=sms, overlapped=False).seconds
    grid = seconds.reshape(len(SEQUENCES), len(CONTEXTS))
    few = SEQUENCES < FEW
    longer = -np.diff(grid, axis=1) / grid[:, 1:]
    assert (longer[~few] <= ROUNDING).all()
    # Carried from another GPU a context between those of rows may dip as well.
    assert longer[few].max() < (0.001 if cluster == "gb200_nvl72" else ROUNDING)
    more = -np.diff(grid, axis=0) / grid[1:]
    assert (more[~few[:-1]] <= ROUNDING).all()
    assert more[few[:-1]].max() < LARGEST_DIP


@pytest.mark.parametrize(
    ("seconds", "measured", "expected"),
    [
        # A measured row that a larger measured one beats is noise.
        ([16.4, 13.5, 10.9, 11.7], "1111", [10.9, 10.9, 10.9, 11.7]),
        # What was not measured gives way to what was, on both sides.
        ([9.0, 12.0, 8.0, 11.0], "1001", [9.0, 9.0, 9.0, 11.0]),
        ([9.0, 20.0, 10.0, 11.0], "0010", [9.0, 10.0, 10.0, 11.0]),
        # Without a measured row each takes the least at no fewer rows.
        ([5.0, 7.0, 6.0, 8.0], "0000", [5.0, 6.0, 6.0, 8.0]),
    ],
)
def test_times_of_products_rise_and_measured_ones_decide(seconds, measured, expected):
    flags = np.array([[flag == "1" for flag in measured]])
    assert rising(np.array([seconds]), flags).tolist() == [expected]


def product(*rows):
    def gemm(m):
        return Operator(
            name="gemm",
            kind="gemm",
            phase="forward",
            segment="mlp",
            dtype="bfloat16",
            out_dtype="bfloat16",
            sizes=(("k", 512), ("m", m), ("n", 512)),
            recompute=False,
            accumulate=False,
        )

    return batch_of([gemm(m) for m in rows])


def scan(batch, sms):
    """Seconds as many as rows, but for a spike at 64; at peak a step of 128 rows each."""
    m = batch.sizes[:, batch.names.index("m")].astype(float)
    return np.where(m == 64, 500.0, m), np.zeros(len(m), dtype=bool), np.ceil(m / 128) * 128


def test_between_the_rows_that_are_scanned_time_goes_as_at_the_peak():
    known = RisingRows("gemm", scan, also=set(), known=set())
    batch = product(48, 56, 64, 128, 2100, 2304, 1_000_000, 2**21)
    alone, _, at_peak = scan(batch, None)
    found = known.seconds(batch, np.full(len(alone), 132.0), alone, at_peak)
    # The spike at 64 takes what 128 rows do, and so do 56, in the same tiles. 2,100 rows lie
    # between 2,048 and 2,304 scanned ones: 17 tiles between 16 and 18.
    between = 2048 * (2304 / 2048) ** (np.log(17 / 16) / np.log(18 / 16))
    # A million between the last two, in 7,813 tiles.
    last = 881_792 * (2**20 / 881_792) ** (np.log(7813 / 6889) / np.log(8192 / 6889))
    assert found == pytest.approx([48, 128, 128, 128, between, 2304, last, 2**21])


@pytest.mark.parametrize("at_peak", [24.0, 30.0])
def test_no_time_is_beyond_that_of_the_next_rows_whatever_its_peak(at_peak):
    """7 s of 16 rows and 29 s of 24, which 7 x (29 / 7) is not to the last bit."""

    def of_rows(batch, sms):
        m = batch.sizes[:, batch.names.index("m")].astype(float)
        return np.select([m < 16, m < 24], [1.0, 7.0], 29.0), np.zeros(len(m), dtype=bool), m

    known = RisingRows("gemm", of_rows, also=set(), known=set())
    found = known.seconds(product(20), np.array([132.0]), np.array([9.0]), np.array([at_peak]))
    assert found.tolist() == [29.0]


def test_256_shapes_are_scanned_at_once():
    scanned = []

    def counted(batch, sms):
        scanned.append(len(batch))
        return scan(batch, sms)

    known = RisingRows("gemm", counted, also=set(), known=set())
    batch = product(*[2**20] * 257)
    batch.sizes[:, batch.names.index("n")] = np.arange(1, 258)
    known.seconds(batch, np.full(257, 132.0), np.ones(257), np.ones(257))
    # The last two numbers of rows of each.
    assert scanned == [2 * 256, 2]


def test_fewer_rows_than_were_asked_before_are_scanned_and_more_are_known():
    scanned = []

    def counted(batch, sms):
        scanned.append(len(batch))
        return scan(batch, sms)

    known = RisingRows("gemm", counted, also=set(), known=set())
    for rows in (2048, 48, 2048):
        alone, _, at_peak = scan(product(rows), None)
        found = known.seconds(product(rows), np.array([132.0]), alone, at_peak)
        assert found == pytest.approx([rows], rel=1e-12)
    # 1,792 rows and all beyond; 32 and all beyond; nothing more.
    every = _scanned(frozenset(), frozenset())[0]
    assert scanned == [(every >= 1792).sum(), (every >= 32).sum()]


@pytest.mark.parametrize("few", [1, 2, 4, 8, 16, 24, 32, 48])
def test_few_rows_are_scanned_one_height_of_a_tile_after_the_other(few):
    """A spike at so many rows, to which fewer are no longer padded than to what more take."""

    def spiked(batch, sms):
        m = batch.sizes[:, batch.names.index("m")].astype(float)
        seconds = np.where(m == few, m - 0.75, m)
        return seconds, np.zeros(len(m), dtype=bool), m

    known = RisingRows("gemm", spiked, also=set(), known=set())
    batch = product(few)
    _, _, at_peak = spiked(batch, None)
    found = known.seconds(batch, np.array([132.0]), np.full(1, 1e9), at_peak)
    assert found == pytest.approx([few - 0.75])


def test_rows_are_scanned_tile_by_tile_up_to_1024_then_by_quarters_of_an_octave():
    found, known = _scanned(frozenset({100, 3000}), frozenset({64, 100}))
    quarters = [128 * math.ceil(8 * 2 ** (number / 4) - 1e-9) for number in range(41)]
    expected = {1, 2, 4, 8, 16, 24, 32, 48, 100, 3000, *range(64, 1025, 64), *quarters}
    assert found.tolist() == sorted(expected)
    assert max(quarters) == 2**20
    assert found[known].tolist() == [64, 100]
