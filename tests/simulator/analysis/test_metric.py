"""A metric says what it is."""

from simulator.analysis.every_metric import METRICS
from simulator.analysis.metric import heading_of, label_of


def test_a_metric_says_its_unit_meaning_and_which_way_is_better():
    mfu = METRICS["training"]["mfu_causal"]
    assert (mfu.unit, mfu.better) == ("share", "more")
    assert mfu.meaning == "model FLOP over the BF16 dense peak, attention counted causally"


def test_a_path_of_the_json_has_words_that_people_use():
    shown = ("step_time_s", "tokens_per_second_per_gpu", "ttft_s.p99", "ranks.0.forward_s",
             "peak_memory_bytes", "mfu_causal", "e2e_s.mean", "kv_occupancy")  # fmt: skip
    assert [label_of(path) for path in shown] == [
        "step time",
        "tokens per second per GPU",
        "TTFT, p99",
        "rank 0, forward",
        "peak memory",
        "MFU (causal)",
        "end to end, mean",
        "KV occupancy",
    ]
    assert METRICS["training"]["bubble_s"].label == "bubble"


def test_a_heading_is_the_label_with_a_capital():
    assert heading_of("peak_memory_bytes") == "Peak memory"
    assert heading_of("ttft_s.p99") == "TTFT, p99"
