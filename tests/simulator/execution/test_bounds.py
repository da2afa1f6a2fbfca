"""The bounds of arXiv 2505.09343, section 2.3.2, and what each idealisation hides."""

import pytest

from hardware_profiles.schema import load_cluster
from reference_model.config import load_model_config
from simulator.execution.bounds import tpot_limit
from simulator.scenario.serving import TpotLimitJob

PAPER = {
    "hidden": 7000,
    "layers": 61,
    "micro_batches": 2,
    "tokens_per_device": 32,
    "copies_per_token": 9,
    "remote_share": 1.0,
    "dispatch_bytes_per_value": 1.0,
    "combine_bytes_per_value": 2.0,
    "fp8_scales": False,
    "link": "nic",
    "compute_per_layer": "0 s",
    "transfer_latency": "0 s",
}


def limit(cluster=None, **changes):
    job = TpotLimitJob.model_validate(PAPER | changes)
    return tpot_limit(
        job,
        config=load_model_config("deepseek_v3"),
        cluster=cluster or load_cluster("h800_2048"),
    )


def test_the_infiniband_bound_is_the_papers():
    bound = limit()
    assert bound.transfer_s == pytest.approx(120.96e-6, rel=1e-12)
    assert bound.tpot_s == pytest.approx(14.757e-3, abs=1e-6)
    assert int(bound.tokens_per_second) == 67
    assert bound.transfers == 244


def test_the_nvl72_bound_is_the_papers():
    cluster = load_cluster("h800_2048", {"node.gpu.nvlink_bandwidth": "900 GB/s"})
    bound = limit(cluster, link="nvlink")
    assert bound.transfer_s == pytest.approx(6.72e-6, rel=1e-12)
    assert bound.tpot_s == pytest.approx(0.81984e-3, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "milliseconds"),
    [
        ({"hidden": 7168}, 15.11),
        ({"hidden": 7168, "layers": 58}, 14.37),
        ({"transfer_latency": "3.7 us"}, 14.757 + 244 * 3.7e-3),
        ({"remote_share": 0.875}, 14.757 * 0.875),
        ({"compute_per_layer": "200 us"}, 61 * 2 * 0.2),
        ({"compute_per_layer": "100 us"}, 14.757),
    ],
)
def test_switching_one_idealisation_off_moves_the_bound(changes, milliseconds):
    assert limit(**changes).tpot_s * 1e3 == pytest.approx(milliseconds, abs=5e-3)


def test_a_last_tile_that_is_not_full_has_a_scale_too():
    # 7,000 values are 54.7 tiles of 128, so 55 scales of 4 bytes in 21,000 bytes of values.
    with_scales = limit(fp8_scales=True).transfer_bytes / limit().transfer_bytes
    assert with_scales == pytest.approx((21000 + 55 * 4) / 21000)


def test_each_idealisation_is_shown_with_the_bound_without_it():
    bound = limit()
    without = {item.name: item.tpot_s for item in bound.idealisations}
    assert without["hidden"] == pytest.approx(15.11e-3, abs=5e-6)
    assert without["transfer_latency"] == pytest.approx((14.757 + 0.903) * 1e-3, abs=5e-6)
    assert without["layers"] == pytest.approx(14.757e-3 * 58 / 61, abs=1e-6)
    assert without["copies_per_token"] == pytest.approx(14.757e-3 * 8 / 9, abs=1e-6)
    assert without["fp8_scales"] > bound.tpot_s


def test_idealisations_without_a_real_value_are_shown_as_assumed():
    shown = {item.name: item for item in limit().idealisations}
    for name, assumed in (
        ("micro_batches", "2"), ("tokens_per_device", "32"), ("remote_share", "1.0"),
        ("compute_per_layer", "0 ns"),
    ):  # fmt: skip
        assert shown[name].assumed == assumed
        assert shown[name].real is None
        assert shown[name].tpot_s is None
