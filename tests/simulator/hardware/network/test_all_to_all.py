"""What dispatch and combine take on one rank."""

import numpy as np
import pytest
from cost_models import CALIBRATION, COSTS, combine, dispatch, fitted, one

from hardware_profiles.schema import load_calibration, load_cluster
from simulator.hardware.kernels.families import calibration_measurements
from simulator.hardware.network.all_to_all import AllToAllModel, Reach
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.normal_law import NormalLaw

# -- dispatch and combine --------------------------------------------------------------------------


def payload(costs, op, *, sms=20, overlapped=False):
    time = costs.transfers_.explain(op, sms=sms, overlapped=overlapped, load=NO_LIMIT)
    return time.seconds - time.notify_s


@pytest.mark.parametrize(
    ("ranks", "dispatch_ms", "combine_ms", "tolerance"),
    [(64, 2.355, 4.66, 0.03), (32, 1.885, 3.72, 0.03), (16, 1.40, 2.72, 0.12)],
)
def test_deepep_alone_takes_the_published_time(ranks, dispatch_ms, combine_ms, tolerance):
    # DeepEP legacy documentation: 51/50, 58/57 and 43/43 GB/s for EP64, EP32 and EP16. At EP16 NIC
    # and NVLink are nearly equal, which the slower of the two alone does not capture.
    costs = fitted(ranks=ranks)
    reached = round(4096 * costs.transfers_.reach.gpus)
    millisecond = 1e-3
    assert payload(costs, dispatch(received=reached), sms=24) == pytest.approx(
        dispatch_ms * millisecond, rel=tolerance
    )
    assert payload(costs, combine(received=reached), sms=24) == pytest.approx(
        combine_ms * millisecond, rel=tolerance
    )


def hops(costs, op, *, sms=20):
    time = costs.transfers_.explain(op, sms=sms, overlapped=False, load=NO_LIMIT)
    return time.nic_s, time.nvlink_s


def test_nics_at_half_speed_double_their_hop():
    slow = fitted({"node.nic.bandwidth": "200 Gbit/s"})
    for op in (dispatch(), combine()):
        assert hops(slow, op)[0] == pytest.approx(2 * hops(COSTS, op)[0], rel=1e-12)
        assert one(slow, op, sms=20, overlapped=True)[1] == "extrapolated"


def test_half_the_tokens_halve_both_hops():
    for make in (dispatch, combine):
        for half, whole in zip(hops(COSTS, make(2048)), hops(COSTS, make()), strict=True):
            assert half == pytest.approx(whole / 2, rel=1e-3)


@pytest.mark.parametrize("sms", [4, 8, 24])
def test_kernels_take_what_their_law_makes_of_copies_and_links(sms):
    # The law of four nodes of H100 stands for eight: copies at 11.97 and 9.208 GB/s per SM.
    laws = (
        NormalLaw(start=38.33e-6, ramp=47.65e-6, softness=1.247, copy=11.97e9, corner=3.881),
        NormalLaw(start=58.68e-6, ramp=116.1e-6, softness=1.237, copy=9.208e9, corner=6.687),
    )
    for op, law, size in ((dispatch(), laws[0], 7392), (combine(), laws[1], 14336)):
        copied = np.array([op["tokens"] * max(7.49, op["rows"] / op["tokens"]) * size])
        links = np.array([max(hops(COSTS, op))])
        expected = law.seconds(copied, np.array([sms]), links)
        assert payload(COSTS, op, sms=sms) == pytest.approx(expected.item(), rel=1e-12)


def test_a_file_without_kernels_between_nodes_leaves_them_to_the_shipped_ones():
    one_node = CALIBRATION.model_copy(update={"normal_kernels": "deepep_b200_sxm"})
    for op in (dispatch(), combine()):
        assert payload(fitted(calibration=one_node), op) == payload(COSTS, op)
        inside = [fitted(ranks=8, calibration=of) for of in (one_node, CALIBRATION)]
        assert payload(inside[0], op) != payload(inside[1], op)


def test_dispatch_and_combine_say_whose_rows_decide_them():
    one_node = CALIBRATION.model_copy(update={"normal_kernels": "deepep_b200_sxm"})
    links = CALIBRATION.model_copy(update={"normal_kernels": "none"})
    for calibration, ranks, who in (
        (CALIBRATION, 64, "deepep_h100_sxm"),
        (one_node, 64, "deepep_h100_sxm"),
        (one_node, 8, CALIBRATION.name),
        # DeepEP's published rows of an H800.
        (links, 64, CALIBRATION.name),
        (links, 8, CALIBRATION.name),
        (links.model_copy(update={"kernel_sets": ("infersim",)}), 8, "links at achieved rates"),
    ):
        costs = fitted(ranks=ranks, calibration=calibration)
        assert [costs.answered_by(op) for op in (dispatch(), combine())] == [who, who]


def test_the_slowdown_beside_compute_is_a_ratio_that_can_be_taken_out():
    without = fitted(calibration=CALIBRATION.without_all_to_all_slowdown())
    for op, ratio in ((dispatch(), 1.64), (combine(), 1.33)):
        alone = payload(COSTS, op)
        assert payload(COSTS, op, overlapped=True) == pytest.approx(ratio * alone)
        assert payload(without, op, overlapped=True) == pytest.approx(alone)


def test_combine_carries_twice_the_bytes_of_dispatch():
    assert payload(COSTS, combine()) / payload(COSTS, dispatch()) == pytest.approx(
        14336 / 7392, rel=0.03
    )


def test_dispatch_alone_at_the_published_point_is_measured_and_beside_compute_interpolated():
    assert one(COSTS, dispatch(), sms=24, overlapped=False)[1] == "measured"
    assert one(COSTS, dispatch(), sms=20, overlapped=True)[1] == "interpolated"
    assert one(COSTS, dispatch(2048), sms=20, overlapped=True)[1] == "extrapolated"


def test_a_group_inside_one_node_uses_no_nic():
    costs = fitted(ranks=8)
    time = costs.transfers_.explain(
        dispatch(received=21627), sms=24, overlapped=False, load=NO_LIMIT
    )
    assert time.nic_s == 0
    assert time.kernel_s == pytest.approx(1.045e-3, rel=0.02)  # 153 GB/s published


def test_few_communication_sms_copy_at_the_rate_of_their_own_direction():
    # On one node 4 SMs of an H100 move 17.0 GB/s each to dispatch and 20.3 to combine; a token goes
    # to 5.28 GPUs, as 7,392 bytes and back as 14,336.
    links = CALIBRATION.model_copy(update={"normal_kernels": "none"})
    costs = fitted(ranks=8, calibration=links).transfers_
    for op, rate, size in (
        (dispatch(received=1), 17.0e9, 7392),
        (combine(received=1), 20.3e9, 14336),
    ):
        time = costs.explain(op, sms=4, overlapped=False, load=NO_LIMIT)
        assert time.copy_s == pytest.approx(4096 * 5.28 * size / (4 * rate), rel=1e-12)
        assert time.payload_s == time.copy_s
    # Between nodes half of them forward, at 23.3 and 18.4 GB/s, to 7.49 GPUs of 8 nodes.
    between = fitted(calibration=links).transfers_
    for op, rate, size in ((dispatch(), 23.3e9, 7392), (combine(), 18.4e9, 14336)):
        time = between.explain(op, sms=4, overlapped=False, load=NO_LIMIT)
        assert time.copy_s == pytest.approx(4096 * 7.49 * size / (2 * rate), rel=1e-4)
        assert time.payload_s == time.copy_s


def test_a_gpu_that_holds_every_expert_exchanges_nothing():
    answer = fitted(ranks=1).predict(
        [dispatch(), combine()], sms=20, overlapped=True, load=NO_LIMIT
    )
    assert [answer.seconds.tolist(), answer.low.tolist(), answer.high.tolist()] == [[0.0, 0.0]] * 3


def test_one_rate_in_an_older_calibration_holds_for_both_directions():
    rates = load_calibration(
        "h800_sxm", {"all_to_all.copy_bandwidth_per_sm": "18 GB/s"}
    ).all_to_all.copy_bandwidth_per_sm
    assert (rates.dispatch, rates.combine, rates.gpu) == (18e9, 18e9, "")
    assert (rates.forwarded_dispatch, rates.forwarded_combine) == (18e9, 18e9)


def test_transfers_without_sms_are_limited_by_links_alone():
    for op in (dispatch(), combine()):
        assert payload(COSTS, op, sms=0) == max(hops(COSTS, op, sms=0)) == max(hops(COSTS, op))
        assert one(COSTS, op, sms=0, overlapped=False)[1] == "extrapolated"
    with pytest.raises(ValueError, match="sms=-1 is not allowed: the GPU has 0 to 132"):
        COSTS.predict([dispatch()], sms=-1, overlapped=False, load=NO_LIMIT)


def test_copies_of_another_generation_of_sms_are_extrapolated():
    other = CALIBRATION.all_to_all.copy_bandwidth_per_sm.model_copy(update={"gpu": "gb200"})
    inputs = CALIBRATION.all_to_all.model_copy(update={"copy_bandwidth_per_sm": other})
    costs = fitted(calibration=CALIBRATION.model_copy(update={"all_to_all": inputs}))
    assert one(COSTS, dispatch(), sms=24, overlapped=False)[1] == "measured"
    assert one(costs, dispatch(), sms=24, overlapped=False)[1] == "extrapolated"


@pytest.mark.parametrize(
    ("ranks", "changes", "added"),
    [
        # The measured times hold 3.33 us of NVLink and, between nodes, 3.7 us of the network.
        (8, {"node.nvlink_latency": "5 us"}, 1.67e-6),
        (8, {"fabric.cross_leaf_latency": "9 us"}, 0.0),
        (64, {"node.nvlink_latency": "1 us", "fabric.cross_leaf_latency": "9 us"}, 2.97e-6),
    ],
)
def test_an_all_to_all_takes_what_its_links_add_to_the_measured_latency(ranks, changes, added):
    op = dispatch(received=1)
    before, after = (
        fitted(of, ranks=ranks)
        .transfers_.explain(op, sms=20, overlapped=False, load=NO_LIMIT)
        .seconds
        for of in (None, changes)
    )
    assert after - before == pytest.approx(added, rel=1e-9, abs=1e-15)


def test_the_same_transfers_asked_in_any_order_take_the_same_time():
    # Links behind the NICs that leave each GPU 20 GB/s.
    behind = FabricLoad(nic_stretch=1.0, bandwidth=20e9, latency=0.0)
    asked = [(op, load) for op in (dispatch(), combine()) for load in (NO_LIMIT, behind)]

    def times(order):
        costs = fitted()
        return {
            place: costs.predict(
                [asked[place][0]], sms=20, overlapped=True, load=asked[place][1]
            ).seconds[0]
            for place in order
        }

    forth, back = times((0, 1, 2, 3)), times((3, 2, 1, 0))
    assert forth == back
    together = COSTS.predict(
        [op for op, _ in asked], sms=20, overlapped=True, load=[load for _, load in asked]
    )
    assert together.seconds.tolist() == [forth[place] for place in range(4)]
    # Of the 3.97 nodes of a token the copies to 7 of 8 cross a NIC.
    for place, size in ((1, 7392), (3, 14336)):
        time = COSTS.transfers_.explain(asked[place][0], sms=20, overlapped=True, load=behind)
        assert time.nic_s == pytest.approx(4096 * 3.97 * 7 / 8 * size / 20e9, rel=1e-12)
        assert forth[place] == time.seconds


def test_a_transfer_without_what_the_fabric_makes_of_it_is_refused():
    with pytest.raises(ValueError, match="dispatch: load=None is not allowed for dispatch"):
        COSTS.predict([dispatch()], sms=20, overlapped=True)


def test_the_smaller_part_of_a_group_that_does_not_fill_nodes_sets_the_pace():
    # 8 GPUs on one node and 4 on another, of which tokens reach 0.9 and 0.7: the 8 send 0.7 copies
    # each, and the NICs of the 4 receive what the 8 send, 0.7 x 8 / 4 = 1.4.
    assert Reach(parts=(8, 4), reached=(0.9, 0.7), gpus=6.0).over_nics == 1.4
    # Two equal nodes: what one sends the other receives.
    assert Reach(parts=(8, 8), reached=(0.9, 0.9), gpus=6.0).over_nics == 0.9
    assert Reach(parts=(12,), reached=(1.0,), gpus=6.0).over_nics == 0.0
    assert fitted(ranks=12).transfers_.reach.parts == (8, 4)


@pytest.mark.parametrize(
    ("changed", "knows"),
    [({}, True), ({"name": "mine"}, True), ({"name": "mine", "sms": 114}, False)],
)
def test_a_gpu_of_another_name_takes_the_kernels_and_the_links_of_the_one_that_it_is(
    changed, knows
):
    calibration = load_calibration("h200_sxm")
    cluster = load_cluster(
        "h200_32", {f"node.gpu.{field}": value for field, value in changed.items()}
    )
    model = AllToAllModel(cluster=cluster, calibration=calibration, ranks=32).fit(
        calibration_measurements(calibration)
    )
    shipped = AllToAllModel(cluster=load_cluster("h200_32"), calibration=calibration, ranks=32).fit(
        calibration_measurements(calibration)
    )
    assert (model.kernels == shipped.kernels) is knows
    assert (model.nic_share_ == shipped.nic_share_) is knows
