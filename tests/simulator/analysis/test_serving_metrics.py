"""The JSON of a serving step has the promised names, and its figures agree with one another."""

import json
import math
import re
from types import SimpleNamespace

import pytest

from simulator.analysis import serving_metrics
from simulator.analysis.run import simulate
from simulator.analysis.serving_metrics import best_batches, headline
from simulator.execution.serving_run import SpeculationPoint
from simulator.scenario.files import load_scenario

NAMES = {
    "step_time_s", "pass_time_s", "tpot_s", "input_tokens_per_second_per_node",
    "output_tokens_per_second_per_node", "output_tokens_per_second_per_gpu",
    "input_tokens_per_second_per_gpu", "kv_cache_bytes_per_token", "kv_cache_tokens_per_gpu",
    "exposed_communication_s", "operators", "error_share", "interval_80",
}  # fmt: skip


def metrics_of(name, *changes):
    return simulate(load_scenario(name, changes)).metrics


def test_a_decode_step_has_every_name_and_its_rates_agree():
    metrics = metrics_of("decode_ep128_profile")
    assert metrics.keys() >= NAMES
    json.dumps(metrics, allow_nan=False)
    step = metrics["step_time_s"]
    assert metrics["tpot_s"] == {"mean": step}
    assert metrics["output_tokens_per_second_per_gpu"] == pytest.approx(128 / step)
    assert metrics["output_tokens_per_second_per_node"] == pytest.approx(8 * 128 / step)
    assert metrics["pass_time_s"] is None
    assert metrics["kv_cache_bytes_per_token"] == 70_272
    low, high = metrics["interval_80"]["step_time_s"]
    assert low <= step <= high
    assert sum(metrics["error_share"].values()) == pytest.approx(1.0)
    alone = metrics["comparisons"]["without_transfer_slowdown"]
    assert alone["step_time_s"] <= step


def test_gpus_without_requests_count_in_every_rate():
    """Of 8 GPUs with 32 requests each 2 have none: 24 per GPU of the node."""
    metrics = metrics_of("decode_ep8_h200", "skew=none", "requests.idle_gpus=2")
    step = metrics["step_time_s"]
    assert metrics["output_tokens_per_second_per_gpu"] * step == pytest.approx(24)
    assert metrics["output_tokens_per_second_per_node"] * step == pytest.approx(192)


def test_gpus_without_prompts_count_in_every_rate():
    """Of 32 GPUs with 16,384 tokens each 8 have none: 12,288 per GPU."""
    metrics = metrics_of("prefill_ep32_h100", "skew=none", "requests.idle_gpus=8")
    seconds = metrics["pass_time_s"]
    assert metrics["input_tokens_per_second_per_gpu"] * seconds == pytest.approx(12_288)
    assert metrics["input_tokens_per_second_per_node"] * seconds == pytest.approx(8 * 12_288)
    full = metrics_of("prefill_ep32_h100", "skew=none")["experts"]["link_bytes"]["combine"]["mean"]
    idle = metrics["experts"]["link_bytes"]["combine"]["mean"]
    assert idle == pytest.approx(0.75 * full, rel=1e-12)


def test_a_tokens_own_gpu_is_one_of_those_that_it_need_not_be_sent_to():
    """Its 8 experts lie on 8 (1 - C(224, 8) / C(256, 8)) = 5.29 of 8 GPUs, 7 of which are others;
    a row is 7168 bytes in FP8 with 56 scales of 4."""
    one_node = ("skew=none", "cluster=h200_8", "calibration=h200_sxm", "gpus=8")
    sent = metrics_of("prefill_ep32_h100", *one_node)["experts"]["link_bytes"]
    others = 8 * (1 - math.comb(224, 8) / math.comb(256, 8)) * 7 / 8
    assert sent["dispatch"]["mean"] == pytest.approx(8192 * others * (7168 + 224), rel=5e-3)
    assert sent["combine"]["mean"] == pytest.approx(8192 * others * 2 * 7168, rel=5e-3)


def test_the_operator_table_holds_each_kernel_with_its_time_and_where_it_comes_from():
    metrics = metrics_of("decode_ep128_profile")
    rows = [row for row in metrics["operators"] if row["layer"] == "moe"]
    for number in (0, 1):
        of_batch = [row for row in rows if row["micro_batch"] == number]
        assert 29 <= len(of_batch) <= 33
        assert all(row["calls"] == 58 for row in of_batch)
        assert all(row["total_s"] == 58 * row["seconds"] for row in of_batch)
    for row in metrics["operators"]:
        assert row["low_s"] <= row["seconds"] <= row["high_s"]
        assert row["provenance"] in {"measured", "interpolated", "extrapolated", "modelled"}


@pytest.mark.parametrize("name", ["decode_ep72_h100", "prefill_ep32_profile", "mtp_one_node"])
def test_the_time_budget_is_the_whole_of_the_step(name):
    metrics = metrics_of(name)
    budget = metrics["time_budget_s"]
    whole = metrics["step_time_s"] or metrics["pass_time_s"]
    assert sum(budget.values()) == pytest.approx(whole)
    assert {"routed experts", "attention projections", "dense feed-forward"} <= budget.keys()
    assert ("drafts" in budget) == name.startswith("mtp")
    waited = metrics["exposed_communication_s"]
    assert budget["waiting for transfers"] == pytest.approx(waited)
    assert "imbalance" in budget
    assert metrics["waiting_for_ranks_s"] > 0.0


def test_a_prefill_pass_counts_input_tokens():
    metrics = metrics_of("prefill_ep32_h100", "skew.rows.max_over_mean=1.3")
    assert metrics["step_time_s"] is None
    assert metrics["tpot_s"] is None
    seconds = metrics["pass_time_s"]
    assert metrics["input_tokens_per_second_per_gpu"] == pytest.approx(16384 / seconds)
    assert metrics["comparisons"]["ideal_ranks"]["pass_time_s"] < seconds
    assert metrics["experts"]["compute_max_over_mean"] == pytest.approx(1.3, rel=1e-6)


def test_a_skewed_step_reads_fewer_weights_and_counts_them():
    # Of 32 experts on a GPU each is left out by 64 tokens, 8 per GPU, with (1 - 8 / 256) ** 64.
    few = ("requests.requests_per_gpu=8", "skew.rows.zipf_exponent=1.2")
    experts = metrics_of("decode_ep8_h200", *few)["experts"]
    expected = 32 * (1 - (1 - 8 / 256) ** 64)
    assert experts["active_experts_per_gpu_balanced"] == pytest.approx(expected, rel=1e-3)
    assert experts["active_experts_per_gpu_mean"] < 0.75 * expected
    even = metrics_of("decode_ep8_h200", "skew=none")["experts"]
    assert even["active_experts_per_gpu_balanced"] is None


def test_figures_of_ranks_that_differ_stand_beside_those_of_ideal_ones():
    metrics, even = metrics_of("decode_ep144_day6"), metrics_of("decode_ep144_day6", "skew=none")
    assert metrics["ideal"]["step_time_s"] == even["step_time_s"]
    assert metrics["ideal"]["tpot_s.mean"] == even["tpot_s"]["mean"]
    assert "ideal" not in even
    causes = metrics["waiting"]["by_cause_s"]
    assert sum(causes.values()) == pytest.approx(metrics["step_time_s"] - even["step_time_s"])
    assert list(causes) == ["imbalance", "slower GPUs", "host", "uncertain inputs"]
    assert len(metrics["waiting"]["by_rank_s"]) == 144
    low, high = metrics["interval_80"]["step_time_s"]
    assert low < metrics["step_time_s"] < high
    assert metrics["priors"]["skew.rows.drift"] > metrics["priors"]["skew.clock_sd"]


def test_a_tray_of_an_nvl72_rack_is_a_node_of_four():
    metrics = metrics_of("decode_nvl72")
    assert metrics["kernels"]["basis"] == "measured"
    # Kernels are all counted, those at the ends of a low-latency wire among them, which are an
    # H200's; a GB200's decode attention is a B200's.
    shares = metrics["kernels"]["time_by_calibration"]
    assert sum(shares.values()) == pytest.approx(1)
    spent = dict.fromkeys((row["name"] for row in metrics["operators"]), 0.0)
    for row in metrics["operators"]:
        spent[row["name"]] += row["total_s"]
    wires, ends = (
        sum(
            spent[f"moe.{operation}_{part}"] for operation in ("dispatch", "combine") for part in of
        )
        for of in (["wire"], ["send", "receive"])
    )
    total = sum(spent.values()) - wires
    assert shares["deepep_h200_nvlink"] == pytest.approx(ends / total, rel=1e-9)
    assert shares["b200_sxm"] == pytest.approx(0.3038, abs=5e-5)
    assert metrics["transfers"]["link"] == "nvlink"
    ratio = (
        metrics["output_tokens_per_second_per_node"] / metrics["output_tokens_per_second_per_gpu"]
    )
    assert ratio == pytest.approx(4)


def test_speculation_shows_its_gain_by_batch_beside_the_published_one():
    metrics = metrics_of("mtp_one_node")
    gain = metrics["speculative_decoding"]
    assert gain["tokens_per_step"] == 1.875
    once = metrics["ideal"]["step_time_s"]
    assert gain["speed_up"] == pytest.approx(1.875 * gain["step_time_without_s"] / once)
    (published,) = metrics["published"]
    assert (published["published"], published["simulated"]) == (1.8, gain["speed_up"])
    batches = [point["batch"] for point in gain["by_batch"]]
    assert batches[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert all(point["speed_up"] < 1.875 for point in gain["by_batch"])
    assert metrics["tpot_s"]["mean"] == pytest.approx(metrics["step_time_s"] / 1.875)
    # 32 of 256 experts on a GPU, 8 for a token: how many a micro-batch touches is known exactly.
    for point in gain["by_batch"]:
        for tokens, touched in (
            (2 * point["batch"], point["active_experts"]),
            (point["batch"], point["active_experts_without"]),
        ):
            assert touched == pytest.approx(32 * (1 - (1 - 8 / 256) ** tokens), rel=0.03, abs=0.4)
    # Almost twice the weights for 1.875 tokens: alone, the experts' kernels would gain little.
    assert all(point["experts_speed_up"] < 1.4 for point in gain["by_batch"][:5])
    assert gain["by_batch"][-1]["experts_speed_up"] > 1.5


def test_where_drafting_stops_paying_is_the_batch_after_the_last_gain():
    def curve(*gains):
        return [
            SpeculationPoint(2**n, 1.0, 1.0, gain, 2.0, 1.0, gain) for n, gain in enumerate(gains)
        ]

    assert best_batches(curve(1.1, 1.4, 1.2, 0.9, 0.8), within="KV cache") == {
        "batch_of_best_gain": 2,
        "batch_of_least_gain": 16,
        "stops_paying_from_batch": 8,
    }
    gains = best_batches(curve(1.1, 1.2), within="KV cache: full")
    assert gains["stops_paying_from_batch"] == "at no batch that fits (KV cache: full)"


def test_rebalancing_is_costed_where_an_interval_is_given():
    metrics = metrics_of(
        "decode_ep144_day6", "skew.rows.zipf_exponent=0.5", "experts.rebalance_interval=10 min",
    )  # fmt: skip
    experts = metrics["experts"]
    assert experts["compute_max_over_mean"] > 1.0
    for carried in experts["link_bytes"].values():
        assert carried["busiest"] / carried["mean"] == pytest.approx(
            experts["compute_max_over_mean"]
        )
    assert 0 < experts["rebalance"]["share"] < 0.1


def test_links_carry_what_the_kernels_send_and_more_where_groups_are_spread():
    # 512 rows a micro-batch: FP8 values with 56 scales and a source, BF16 values.
    experts = metrics_of("decode_ep128_profile", "skew=none")["experts"]
    # One of 128 stays on the GPU that sends it.
    assert experts["link_bytes"]["dispatch"]["mean"] == 512 * (7168 + 56 * 4 + 16) * 127 / 128
    assert experts["link_bytes"]["combine"]["busiest"] == 512 * 14336 * 127 / 128
    # 8,192 tokens to the other nodes that each reaches, 3.1 of 4 in all.
    near, far = (
        metrics_of("prefill_ep32_profile", f"experts.placement={policy}")
        for policy in ("hierarchical", "global")
    )
    reached = near["transfers"]["nodes_per_token"] * 3 / 4
    assert near["experts"]["link_bytes"]["combine"]["mean"] == pytest.approx(8192 * reached * 14336)
    for operation in ("dispatch", "combine"):
        carried = [m["experts"]["link_bytes"][operation]["mean"] for m in (near, far)]
        assert carried[1] > 1.05 * carried[0]


def test_rebalancing_within_a_node_goes_over_nvlink():
    changes = (
        "skew.rows.zipf_exponent=0.5", "experts.placement=global",
        "experts.rebalance_interval=10 min",
    )  # fmt: skip
    moved = metrics_of("decode_ep8_h200", *changes)["experts"]["rebalance"]
    assert moved["bytes_per_gpu"] / moved["seconds"] > 200e9


def test_the_largest_batch_is_the_deployments_not_that_of_a_small_steps_order():
    few, many = (
        metrics_of("decode_ep128_profile", f"requests.requests_per_gpu={count}") for count in (1, 8)
    )
    assert few["largest_batch_per_gpu"] == many["largest_batch_per_gpu"] > 128


@pytest.mark.parametrize(
    ("name", "changes", "split"),
    [
        # Tensor parallelism alone splits everything; beside expert-parallel layers heads and
        # vocabulary are shared by the group, feed-forwards are whole.
        ("decode_tp8_h200", [], (8, 8, 8, 8, 8)),
        ("decode_ep320_report", [], (4, 1, 1, 1, 4)),
        ("decode_ep128_profile", [], (1, 1, 1, 1, 1)),
        ("decode_tp8_h200", ["attention_tp=1"], (1, 8, 8, 8, 1)),
        ("decode_ep320_report", ["dense_tp=4", "vocabulary_tp=1"], (4, 1, 1, 4, 1)),
    ],
)
def test_what_is_split_over_how_many_gpus_is_said(name, changes, split):
    parts = ("attention", "experts", "shared_expert", "dense", "vocabulary")
    assert metrics_of(name, *changes)["tensor_parallel"] == dict(zip(parts, split, strict=True))


def test_the_rows_of_an_offload_server_tell_fitted_from_held_out():
    rows = metrics_of("offload_ktransformers")["published"]
    assert [row["name"].split("(")[1] for row in rows] == ["fitted)"] * 2 + ["held out)"] * 2


def test_a_bound_shows_its_idealisations_by_name():
    metrics = metrics_of("tpot_limit_cx7")
    without = {item["name"]: item["tpot_s"] for item in metrics["idealisations"]}
    # 61 layers of the bound, 58 of the model that have experts.
    assert without["layers"] == pytest.approx(metrics["tpot_s"]["mean"] * 58 / 61, rel=1e-12)
    assert without["micro_batches"] is None


def test_the_rates_of_an_offload_server_are_one_over_its_times():
    metrics = metrics_of("offload_ktransformers")
    assert metrics["tokens_per_second_per_user"] == 1 / metrics["step_time_s"]
    for row in metrics["published"]:
        assert row["error"] == row["simulated"] / row["published"] - 1
        sockets, experts = re.findall(r"(\d+) (?:sockets|experts)", row["name"])
        changes = f"sockets={sockets}", f"experts_per_token={experts}"
        own = metrics_of("offload_ktransformers", *changes)
        assert row["simulated"] == own["tokens_per_second_per_user"]


@pytest.mark.parametrize(
    ("link", "nvlink", "said"),
    [
        ("mixed", False, {"link": "mixed", "nvlink_share": 0.25, "low_latency": "made_up"}),
        ("nic", False, {"link": "nic", "low_latency": "made_up"}),
        (None, False, {"link": "nic"}),
        ("nvlink", True, {"link": "nvlink", "low_latency": "made_up"}),
        (None, True, {"link": "nvlink"}),
    ],
)
def test_transfers_say_what_they_travel_over_and_which_share_stays_on_nvlink(link, nvlink, said):
    """NICs of 50 bytes/s per GPU, NVLink of 400, and 3.5 nodes and 5 GPUs that a token goes to."""
    normal = link is None
    model = SimpleNamespace(
        cluster=SimpleNamespace(
            node=SimpleNamespace(
                gpu=SimpleNamespace(nvlink_bandwidth=400.0), nic_bandwidth_per_gpu=50.0
            )
        ),
        job=SimpleNamespace(normal_transfers=normal),
        low_latency=None if normal else SimpleNamespace(name="made_up", link=link),
        over_nvlink=nvlink,
        domain_share=0.25,
        transfers=SimpleNamespace(reach=SimpleNamespace(nodes=3.5)),
        kernels=SimpleNamespace(
            load=SimpleNamespace(nic_stretch=1.5, bandwidth=math.inf), received_per_token=5.0
        ),
    )
    found = serving_metrics.transfer_metrics(SimpleNamespace(model=model))
    over_nics = {
        "nodes_per_token": 3.5 if normal else None,
        "gpus_per_token": 5.0 if normal else None,
        "nic_stretch": 1.5,
        "fabric_bytes_per_s": None,
    }
    rate = {"link_bytes_per_s": 400.0 if nvlink else 50.0}
    assert found == said | rate | ({} if nvlink else over_nics)


def test_links_carry_nothing_of_experts_that_gpus_share():
    for shared in (2, 8):
        model = SimpleNamespace(job=SimpleNamespace(expert_tp=shared))
        assert serving_metrics._link_bytes(SimpleNamespace(model=model), 1.0, 1.0) is None


def test_rates_are_means_over_gpus_that_have_requests_and_those_that_have_none():
    """Two of ten GPUs are idle; the others have three requests each, two GPUs sharing six."""
    requests = SimpleNamespace(idle_gpus=2)
    job = SimpleNamespace(
        phase="decode", gpus=10, requests=requests, group_requests=6, attention_tp=2,
        speculative_decoding=None,
    )  # fmt: skip
    rates = headline(job, 0.02, 8)
    assert rates["output_tokens_per_second_per_gpu"] == pytest.approx(0.8 * 3 / 0.02)
    assert rates["output_tokens_per_second_per_node"] == pytest.approx(8 * 0.8 * 3 / 0.02)
    assert rates["tokens_per_second_per_user"] == pytest.approx(1 / 0.02)
    assert rates["tpot_s"] == {"mean": 0.02}


def test_times_have_the_interval_of_the_iteration_and_rates_the_inverse():
    """An iteration of 2 s, of 1.6 to 2.5, that gives two tokens."""
    figures = {"step_time_s": 2.0, "pass_time_s": None, "tpot_s": {"mean": 1.0}, "rate": 10.0}
    assert serving_metrics._intervals(2.0, (1.6, 2.5), figures) == {
        "step_time_s": [1.6, 2.5], "tpot_s": [0.8, 1.25], "rate": [8.0, 12.5],
    }  # fmt: skip


def test_rates_of_a_decode_step_count_drafts_and_idle_gpus():
    """12 requests of groups of 2 of 8 GPUs, 2 of them idle, in 3 s: 1.5 tokens each."""
    job = SimpleNamespace(
        phase="decode",
        requests=SimpleNamespace(idle_gpus=2),
        gpus=8,
        group_requests=12,
        attention_tp=2,
        speculative_decoding=SimpleNamespace(tokens_per_step=1.5),
    )
    found = headline(job, 3.0, 4)
    each = 0.75 * 6 * 1.5 / 3
    assert found["output_tokens_per_second_per_gpu"] == each
    assert found["output_tokens_per_second_per_node"] == 4 * each
    assert found["tokens_per_second_per_user"] == 0.5
    assert (found["step_time_s"], found["tpot_s"]) == (3.0, {"mean": 2.0})
