"""A metric says what it is."""

from simulator.analysis.every_metric import METRICS


def test_a_metric_says_its_unit_meaning_and_which_way_is_better():
    mfu = METRICS["training"]["mfu_causal"]
    assert (mfu.unit, mfu.better) == ("share", "more")
    assert mfu.meaning == "model FLOP over the BF16 dense peak, attention counted causally"
