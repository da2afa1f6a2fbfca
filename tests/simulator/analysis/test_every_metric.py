"""Every figure that a run prints is a metric, and every metric is printed by some run."""

import json

import pytest
from goldens import GOLDENS, job_of

from simulator.analysis.every_metric import METRICS, leading, metric_of

GOLDEN = json.loads(GOLDENS.read_text(encoding="utf-8"))
JOB_OF = {name: job_of(name) for name in GOLDEN}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_figure_of_a_run_is_a_metric(name):
    assert [path for path in GOLDEN[name] if metric_of(path, JOB_OF[name]) is None] == []


# Replays are of users' profiles: test_profile_replay.py asks the same of one.
@pytest.mark.parametrize("job", sorted(set(METRICS) - {"replay"}))
def test_every_metric_is_printed_by_some_run(job):
    of_every_job = set.intersection(*(set(table) for table in METRICS.values()))
    printed = {
        metric.name
        for name, figures in GOLDEN.items()
        if JOB_OF[name] == job
        for path in figures
        if (metric := metric_of(path, job)) is not None
    }
    # Texts and what depends on the machine that ran are not among the goldens.
    rare = {"verdict", "transfers.nvlink_share", "littles_law_error"}
    rare |= {f"experts.rebalance.{part}" for part in ("bytes_per_gpu", "seconds", "share")}
    assert set(METRICS[job]) - printed - of_every_job - rare == set()


def test_a_name_has_one_unit_and_one_better_direction_in_all_jobs():
    said = {}
    for table in METRICS.values():
        for metric in table.values():
            said.setdefault(metric.name, set()).add((metric.unit, metric.better))
    assert {name: found for name, found in said.items() if len(found) > 1} == {}


@pytest.mark.parametrize("name", ["exposed_communication_s", "waiting_for_ranks_s"])
def test_what_a_rank_waits_for_means_the_same_in_all_jobs(name):
    metrics = [m for table in METRICS.values() for m in table.values() if m.name.endswith(name)]
    assert len(metrics) == 3
    assert len({(m.unit, m.better, m.meaning) for m in metrics}) == 1


@pytest.mark.parametrize(
    ("path", "job", "name"),
    [
        ("ranks.3.bubble_s", "training", "bubble_s"),
        ("comparisons.ideal_ranks.tpot_s.mean", "serving_step", "tpot_s"),
        ("ttft_s.p99", "fleet", "ttft_s"),
        ("memory[].weights", "training", "memory"),
        ("experts.link_bytes.combine.mean", "serving_step", "experts.link_bytes"),
    ],
)
def test_a_path_leads_to_its_metric(path, job, name):
    assert metric_of(path, job).name == name
    assert metric_of("no_such_figure") is None


def test_tables_begin_with_the_metrics_that_lead_in_their_order():
    assert leading("training")[:10] == [
        "step_time_s", "pair_time_s", "tokens_per_day", "tokens_per_second_per_gpu",
        "tflops_per_gpu_causal", "mfu_causal", "gpu_hours_per_trillion_tokens",
        "cost_usd_per_trillion_tokens", "bubble_s", "peak_memory_bytes",
    ]  # fmt: skip
    assert leading("serving_step") == [
        "step_time_s", "pass_time_s", "tpot_s", "input_tokens_per_second_per_gpu",
        "input_tokens_per_second_per_node", "output_tokens_per_second_per_gpu",
        "output_tokens_per_second_per_node", "tokens_per_second_per_user",
        "exposed_communication_s", "kv_cache_tokens_per_gpu", "largest_batch_per_gpu",
    ]  # fmt: skip
