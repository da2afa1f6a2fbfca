"""What each figure that a run prints is: its unit, its meaning, and which way is better.

A name is the last parts of a figure's path in the JSON of a run: "ranks.forward_s" stands for
"ranks.3.forward_s", and "step_time_s" for "comparisons.balanced.step_time_s" as well. A name that
ends before its path does stands for all below it: "memory" for "memory.0.weights".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a run."""

    name: str
    unit: str
    """SI, or what is counted; "share" of one, "ratio"; empty where it has none of its own."""
    better: Literal["less", "more"] | None
    """None where neither is."""
    meaning: str


STATISTICS = frozenset({"mean", "p50", "p90", "p95", "p99"})
"""Last parts of a path that are of the figure before them: "ttft_s.mean"."""

_EVERY_JOB = (
    Metric(
        "step_time_s",
        "s",
        "less",
        "time of one step: of training, of decode per token round, of a bound",
    ),
    Metric(
        "tokens_per_second_per_user",
        "tokens/s",
        "more",
        "output tokens per second of one request",
    ),
    Metric("tpot_s", "s", "less", "time per output token of one request"),
    Metric("published", "", None, "published value, in the unit of its metric"),
    Metric("published.simulated", "", None, "simulated value, in the unit of the published one"),
    Metric("published.error", "share", None, "simulated / published - 1"),
    Metric("interval_80.low_s", "s", "less", "low end of the 80% interval of the iteration"),
    Metric("interval_80.high_s", "s", "less", "high end of the 80% interval of the iteration"),
    Metric("error_share", "share", None, "share of kernel time by where the times come from"),
    Metric(
        "kernels.own_rows_share",
        "share",
        None,
        "share of the time of compute kernels that the calibration's own rows decide",
    ),
    Metric(
        "kernels.time_by_calibration",
        "share",
        None,
        "share of the time of compute kernels by the calibration whose rows decide it",
    ),
    Metric("wall_clock_s", "s", "less", "how long the simulation itself took"),
    Metric("idle_nodes", "nodes", None, "nodes outside whole NVLink domains; none where all count"),
)
_TRAINING = (
    Metric("tokens_per_day", "tokens/d", "more", "tokens that all GPUs train on per day"),
    Metric("tokens_per_second_per_gpu", "tokens/s", "more", "tokens trained on per second per GPU"),
    Metric(
        "tflops_per_gpu_causal",
        "TFLOP/s",
        "more",
        "model FLOP per second per GPU, attention counted causally",
    ),
    Metric(
        "tflops_per_gpu_non_causal",
        "TFLOP/s",
        "more",
        "model FLOP per second per GPU, attention counted in full",
    ),
    Metric(
        "mfu_causal",
        "share",
        "more",
        "model FLOP over the BF16 dense peak, attention counted causally",
    ),
    Metric(
        "mfu_non_causal",
        "share",
        "more",
        "model FLOP over the BF16 dense peak, attention counted in full",
    ),
    Metric("gpu_hours_per_trillion_tokens", "h", "less", "GPU hours per 10^12 tokens"),
    Metric("cost_usd_per_trillion_tokens", "USD", "less", "rent of all GPUs per 10^12 tokens"),
    Metric(
        "pair_time_s",
        "s",
        "less",
        "time of the overlapped forward and backward pair of a middle rank",
    ),
    Metric("peak_memory_bytes", "bytes", "less", "memory of the fullest rank"),
    Metric(
        "bubble_s",
        "s",
        "less",
        "waiting of a pipeline rank for others, for sends and for the slowest optimizer; of the"
        " step, the rank that waits longest",
    ),
    Metric("kernel_time_share", "share", None, "share of kernel time by where the times come from"),
    Metric(
        "attribution.seconds",
        "s",
        None,
        "what a cause adds to the step, after those before it",
    ),
    Metric("ranks.forward_s", "s", None, "forward-only chunks of a pipeline rank"),
    Metric(
        "ranks.backward_s",
        "s",
        None,
        "backward chunks of a pipeline rank that are not overlapped",
    ),
    Metric("ranks.weight_s", "s", None, "weight-gradient chunks of their own of a pipeline rank"),
    Metric(
        "ranks.overlapped_s",
        "s",
        None,
        "overlapped forward and backward pairs of a pipeline rank",
    ),
    Metric("ranks.optimizer_s", "s", None, "optimizer of a pipeline rank with its collectives"),
    Metric(
        "ranks.waiting_for_ranks_s",
        "s",
        "less",
        "of the bubble, waiting for what other ranks had not yet produced, and for the slowest"
        " optimizer",
    ),
    Metric(
        "ranks.waiting_for_sends_s",
        "s",
        "less",
        "of the bubble, waiting for what had been produced and was being sent",
    ),
    Metric(
        "ranks.waiting_for_host_s",
        "s",
        "less",
        "of the bubble, waiting for the host, where launching all kernels outlasts the pipeline",
    ),
    Metric(
        "ranks.exposed_communication_s",
        "s",
        "less",
        "time inside the chunks in which the compute stream waits for an all-to-all",
    ),
    Metric(
        "ranks.hidden_communication_s",
        "s",
        None,
        "all-to-all time inside the chunks with a compute kernel running",
    ),
    Metric("memory", "bytes", "less", "memory of a pipeline rank by what it holds"),
    Metric("nic_bytes_per_s", "bytes/s", "more", "rate of the NICs per GPU"),
    Metric(
        "nic_stretch",
        "ratio",
        "less",
        "time of the busiest NIC over the same without failures",
    ),
    Metric(
        "fabric_bytes_per_s",
        "bytes/s",
        "more",
        "what a GPU sends if only links beyond the NICs limited it",
    ),
)
_SERVING_STEP = (
    Metric("pass_time_s", "s", "less", "time of one prefill pass"),
    Metric(
        "input_tokens_per_second_per_gpu",
        "tokens/s",
        "more",
        "prompt tokens computed per second per GPU",
    ),
    Metric(
        "input_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "prompt tokens computed per second per node",
    ),
    Metric(
        "output_tokens_per_second_per_gpu",
        "tokens/s",
        "more",
        "output tokens per second per GPU",
    ),
    Metric(
        "output_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "output tokens per second per node",
    ),
    Metric("tensor_parallel", "GPUs", None, "GPUs that each part of the model is split over"),
    Metric("time_budget_s", "s", None, "parts that an iteration's time consists of"),
    Metric(
        "exposed_communication_s",
        "s",
        "less",
        "time in which the compute stream waits for transfers under way",
    ),
    Metric(
        "waiting_for_ranks_s",
        "s",
        "less",
        "time in which the compute stream waits for other ranks to begin a transfer with",
    ),
    Metric("host_overhead_s", "s", "less", "time of the host between iterations"),
    Metric("kv_cache_bytes_per_token", "bytes", "less", "KV cache of one token in all layers"),
    Metric("kv_cache_tokens_per_gpu", "tokens", "more", "tokens whose KV cache fits into a GPU"),
    Metric(
        "kv_cache_tokens_needed_per_gpu",
        "tokens",
        None,
        "tokens whose KV cache the job's requests need per GPU",
    ),
    Metric(
        "largest_batch_per_gpu",
        "requests",
        "more",
        "requests per GPU that the KV cache has room for",
    ),
    Metric("memory_bytes", "bytes", None, "memory of a GPU by what it holds, and its capacity"),
    Metric(
        "transfers.nodes_per_token",
        "nodes",
        None,
        "nodes that hold one of a token's experts, mean",
    ),
    Metric(
        "transfers.gpus_per_token",
        "GPUs",
        None,
        "GPUs that hold one of a token's experts, mean",
    ),
    Metric(
        "transfers.link_bytes_per_s",
        "bytes/s",
        "more",
        "rate of the link that carries dispatch and combine",
    ),
    Metric(
        "transfers.fabric_bytes_per_s",
        "bytes/s",
        "more",
        "what a GPU sends if only links beyond the NICs limited it",
    ),
    Metric(
        "transfers.nic_stretch",
        "ratio",
        "less",
        "time of the busiest NIC over the same without failures",
    ),
    Metric("transfers.nvlink_share", "share", None, "share of the copies that NVLink carries"),
    Metric(
        "experts.active_experts_per_gpu_mean",
        "experts",
        None,
        "experts per GPU that get tokens, mean over layers and micro-batches",
    ),
    Metric(
        "experts.active_experts_per_gpu_balanced",
        "experts",
        None,
        "the same with all experts equally popular",
    ),
    Metric(
        "experts.compute_max_over_mean",
        "ratio",
        "less",
        "tokens routed to the busiest GPU over the mean",
    ),
    Metric(
        "experts.rows_per_gpu_mean",
        "tokens",
        None,
        "tokens routed to a GPU per layer and micro-batch, mean",
    ),
    Metric(
        "experts.link_bytes",
        "bytes",
        "less",
        "bytes over a GPU's link per layer and micro-batch",
    ),
    Metric(
        "experts.rebalance.bytes_per_gpu",
        "bytes",
        "less",
        "expert weights that a GPU receives when experts move",
    ),
    Metric("experts.rebalance.seconds", "s", "less", "how long moving experts takes"),
    Metric("experts.rebalance.share", "share", "less", "the same over the time between two moves"),
    Metric("experts.rebalance", "", None, "what moving experts costs; none where nothing moves"),
    Metric("speculation", "", None, "what drafting gains; none where the job does not draft"),
    Metric(
        "speculation.tokens_per_step",
        "tokens",
        "more",
        "tokens that a request gains per step, expected",
    ),
    Metric(
        "speculation.step_time_without_s",
        "s",
        "less",
        "time of the step without drafted tokens",
    ),
    Metric(
        "speculation.by_batch.step_without_s",
        "s",
        "less",
        "time of the step without drafted tokens at a batch",
    ),
    Metric("speculation.by_batch.step_s", "s", "less", "time of the step at a batch"),
    Metric(
        "speculation.speed_up",
        "ratio",
        "more",
        "tokens per second of a request with drafting over without",
    ),
    Metric("speculation.by_batch.speed_up", "ratio", "more", "the same at a batch"),
    Metric(
        "speculation.by_batch.experts_speed_up",
        "ratio",
        "more",
        "the same if the routed experts' kernels were all of a step",
    ),
    Metric(
        "speculation.by_batch.active_experts",
        "experts",
        None,
        "local experts that a micro-batch touches, mean over GPUs and layers",
    ),
    Metric(
        "speculation.by_batch.active_experts_without",
        "experts",
        None,
        "the same without drafted tokens",
    ),
    Metric("speculation.by_batch.batch", "requests", None, "requests of the whole deployment"),
    Metric(
        "speculation.batch_of_best_gain",
        "requests",
        None,
        "requests of the deployment at which drafting gains most",
    ),
    Metric(
        "speculation.batch_of_least_gain",
        "requests",
        None,
        "requests of the deployment at which drafting gains least",
    ),
    Metric("operators.calls", "calls", None, "times that an iteration calls a kernel"),
    Metric("operators.micro_batch", "", None, "number of the micro-batch"),
    Metric("operators.seconds", "s", "less", "time of one call of a kernel"),
    Metric("operators.low_s", "s", "less", "low end of its 80% interval"),
    Metric("operators.high_s", "s", "less", "high end of its 80% interval"),
    Metric("operators.total_s", "s", "less", "time of all calls of a kernel in an iteration"),
    Metric("operators.sizes", "", None, "a dimension of a kernel"),
)
_TPOT_LIMIT = (
    Metric(
        "transfer_s",
        "s",
        "less",
        "dispatch and combine of one micro-batch and layer, latency included",
    ),
    Metric("transfers", "transfers", None, "dispatches and combines of one step"),
    Metric(
        "transfer_bytes",
        "bytes",
        "less",
        "bytes that a device sends in one dispatch and combine",
    ),
    Metric("link_bandwidth_bytes_per_s", "bytes/s", "more", "rate of the link"),
    Metric(
        "idealisations.tpot_s",
        "s",
        "less",
        "the bound with the real value in the place of an idealisation",
    ),
    Metric(
        "idealisations.instead",
        "",
        None,
        "the real value; none where model and network have none",
    ),
)
_OFFLOAD = (
    Metric(
        "fixed_s",
        "s",
        "less",
        "part of a token's time that does not depend on the routed experts",
    ),
    Metric("experts_s", "s", "less", "time in routed experts, all sockets at work"),
    Metric(
        "cpu_expert_bytes_per_s",
        "bytes/s",
        "more",
        "expert weights that one socket reads per second",
    ),
    Metric(
        "cpu_expert_share_of_peak",
        "share",
        "more",
        "the same over the peak of the socket's memory",
    ),
    Metric("gpu_weights_read_s", "s", "less", "least time to read the weights that lie on the GPU"),
    Metric("gpu_resident_bytes", "bytes", "less", "weights on the GPU"),
)
_COLLECTIVE = (
    Metric("completion_s", "s", "less", "when everything has arrived everywhere"),
    Metric("bytes_total", "bytes", None, "payload of all transfers"),
    Metric(
        "bus_bandwidth_bytes_per_s",
        "bytes/s",
        "more",
        "bytes per second that really leave a GPU, as nccl-tests' busbw",
    ),
    Metric(
        "algorithm_bandwidth_bytes_per_s",
        "bytes/s",
        "more",
        "bytes per second of a GPU with its own share counted, as algbw",
    ),
    Metric("solves", "solves", "less", "times that the rates of all flows were worked out"),
    Metric(
        "merge_share",
        "share",
        None,
        "share of the run within which rates are worked out together",
    ),
    Metric("links.bytes", "bytes", None, "bytes that a link carried"),
    Metric(
        "links.utilisation",
        "share",
        None,
        "bytes over the link's capacity times the run's length",
    ),
    Metric("rows.gpus", "GPUs", None, "GPUs of an operation"),
    Metric("rows.groups", "groups", None, "groups that do the same at once"),
    Metric("rows.group_gpus", "GPUs", None, "GPUs of one group"),
    Metric("rows.size_bytes", "bytes", None, "bytes that one GPU has to send"),
    Metric(
        "rows.mean_gpu_s",
        "s",
        "less",
        "when the last flow that concerns a GPU is done, mean over GPUs",
    ),
    Metric(
        "rows.bandwidth_over_adaptive",
        "ratio",
        "more",
        "bandwidth over that of the same operation under adaptive routing",
    ),
    Metric("rows.nodes_per_token", "nodes", None, "nodes that a token is sent to, mean"),
    Metric("rows.gpus_per_token", "GPUs", None, "GPUs that a token is sent to, mean"),
    Metric(
        "rows.nic_copies_saved",
        "share",
        "more",
        "copies over NICs that sending one per node saves against one per expert",
    ),
    Metric("rows.sms", "SMs", "less", "SMs that the operation keeps"),
    Metric(
        "rows.alone_s",
        "s",
        None,
        "time alone that measured rows say: low end of its 80% interval, value, high end",
    ),
)
_FLEET = (
    Metric(
        "ttft_s",
        "s",
        "less",
        "time to first token: from arrival to the end of the prefill that gives it",
    ),
    Metric(
        "tpot_s",
        "s",
        "less",
        "time per output token of a request that ends in the window: (end - first token) / "
        "(output tokens - 1)",
    ),
    Metric(
        "itl_s",
        "s",
        "less",
        "inter-token latency: all gaps in the window between two tokens of a request, one "
        "population; tokens accepted together from one step have gaps of 0",
    ),
    Metric(
        "e2e_s",
        "s",
        "less",
        "from arrival to the last token, of requests that end in the window",
    ),
    Metric(
        "queueing_s",
        "s",
        "less",
        "from arrival to the start of the first prefill pass that computes some of it",
    ),
    Metric(
        "decode_wait_s",
        "s",
        "less",
        "from the first token to the start of the first decode step",
    ),
    Metric(
        "goodput_requests_per_second",
        "requests/s",
        "more",
        "requests that finish in the window and meet the service level (TTFT and TPOT), per "
        "second of it",
    ),
    Metric(
        "output_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "tokens generated in the window per second and node that decodes",
    ),
    Metric("output_tokens_per_second_per_gpu", "tokens/s", "more", "the same per GPU"),
    Metric(
        "input_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "prompt tokens prefilled in the window, cached ones included, per second and node that "
        "prefills",
    ),
    Metric(
        "computed_input_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "the same without cached tokens",
    ),
    Metric(
        "sustained_input_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "what a saturated node of a prefill pool takes at most: full passes, all ranks loaded "
        "alike, prompts and cached shares as in this run",
    ),
    Metric(
        "prefill_busy_share",
        "share",
        "more",
        "share of its time that a prefill instance is in passes; this and the next two, times "
        "what a saturated node takes, are what a node took",
    ),
    Metric(
        "prefill_even_ranks_share",
        "share",
        "more",
        "time of passes whose ranks share the work alike, over their time",
    ),
    Metric(
        "prefill_full_passes_share",
        "share",
        "more",
        "time that full passes take for the same tokens, over that",
    ),
    Metric(
        "sustained_output_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "what a node of a decode pool gives at most within the TPOT limit: the largest batches "
        "whose step keeps it, all ranks loaded alike, KV cache per request as in this run",
    ),
    Metric(
        "attended_tokens",
        "tokens",
        None,
        "tokens that a computed prompt token attends to, mean",
    ),
    Metric(
        "nodes_at_least",
        "nodes",
        "less",
        "input and output tokens/s of the window over what saturated nodes sustain, of all "
        "replicas: no fewer nodes can serve these requests within the TPOT limit",
    ),
    Metric(
        "tokens_per_second_per_user",
        "tokens/s",
        "more",
        "one over the mean inter-token latency: tokens after the first that are generated in "
        "the window, over the time that their requests waited for them",
    ),
    Metric(
        "prefix_hit_rate",
        "share",
        "more",
        "cached share of the blocks of prompts that arrive after the warm-up; of their tokens "
        "where prompts have no block hashes",
    ),
    Metric(
        "kv_occupancy",
        "share",
        None,
        "KV cache in use or set aside over the capacity in service where requests decode, mean "
        "over the window",
    ),
    Metric(
        "cost_usd_per_million_output_tokens",
        "USD",
        "less",
        "rent of all nodes for the window / its output tokens",
    ),
    Metric(
        "nodes",
        "nodes",
        "less",
        "nodes paid for, those down after a failure included and those scaled away not, of all "
        "replicas: mean over the window",
    ),
    Metric(
        "littles_law_error",
        "ratio",
        None,
        "mean number inside / (arrival rate x mean stay) - 1, over the whole run",
    ),
    Metric(
        "verdict",
        "",
        None,
        "overloaded: pressed, and more than {growth} of the arrivals are turned away or, in the"
        " second half of the window, stay in the queues; backlogged: pressed, but no more than "
        "that; stable: neither. Pressed: a request waits longer than the TTFT limit on average,"
        " more than {preempted} of them are preempted or more than {growth} turned away. None: "
        "the window is shorter than {stays} mean times in service, or than four looks at the "
        "queues, or nothing finishes although nothing presses",
    ),
    Metric(
        "window_s",
        "s",
        None,
        "from the end of the warm-up, {warm_up}, to the last arrival (to the end of the run if "
        "all requests have arrived {look} after the warm-up). Rates, TPOT, ITL and end to end "
        "are of this window; TTFT, queueing, decode wait and prefix hits of the requests that "
        "arrive after the warm-up and come so far",
    ),
    Metric(
        "output_tokens_per_second",
        "tokens/s",
        "more",
        "tokens generated in the window per second by all replicas",
    ),
    Metric("count", "", None, "how many times a latency was taken"),
    Metric("mean_wait_s", "s", "less", "wait of a request for prefill and decode, mean"),
    Metric(
        "waiting_growth",
        "share",
        "less",
        "share of the arrivals that stay in the queues in the second half of the window",
    ),
    Metric("window_stays", "ratio", None, "length of the window over the mean time in service"),
    Metric("preempted_share", "share", "less", "share of the requests that are preempted"),
    Metric("refused_share", "share", "less", "share of the requests that are turned away"),
    Metric("replicas", "", None, "copies of the service"),
    Metric("simulated_s", "s", None, "time that the run covers"),
    Metric(
        "goodput_cliff",
        "",
        None,
        "why the ends of goodput lie far apart; none where they do not",
    ),
    Metric("requests", "requests", None, "requests by what became of them"),
    Metric("instances", "instances", None, "instances of a pool"),
    Metric(
        "kv_capacity_tokens",
        "tokens",
        "more",
        "tokens whose KV cache an instance has room for",
    ),
    Metric("kv_tokens_per_request", "tokens", None, "KV cache of a request, mean"),
    Metric("mean_batch_per_instance", "requests", None, "requests in a step of an instance, mean"),
    Metric("mean_pass_tokens", "tokens", None, "tokens of a prefill pass, mean"),
    Metric("utilisation", "share", None, "share of its time that an instance works"),
    Metric("share", "share", None, "share of the requests (ITL: of the gaps) that take no longer"),
    Metric("value_s", "s", None, "a latency"),
    Metric("time_series.time_s", "s", None, "start of a bin"),
    Metric("time_series.arrivals_per_second", "requests/s", None, "requests that arrive"),
    Metric("time_series.batch", "requests", None, "batch of a decode instance"),
    Metric("time_series.in_system", "requests", None, "requests in the service"),
    Metric("time_series.input_tokens_per_second", "tokens/s", None, "prompt tokens prefilled"),
    Metric("time_series.output_tokens_per_second", "tokens/s", None, "tokens generated"),
    Metric("time_series.waiting_prefill", "requests", None, "requests that wait for prefill"),
    Metric("time_series.waiting_decode", "requests", None, "requests that wait for decode"),
)


_REPLAY = (
    Metric("span_s", "s", "less", "from the start of the first kernel to the end of the last"),
    Metric("measured_span_s", "s", None, "the same in the recording"),
    Metric("compute_busy_s", "s", None, "time in which a compute stream runs a kernel"),
    Metric("communication_busy_s", "s", None, "time in which a communication stream runs a kernel"),
    Metric(
        "exposed_communication_s",
        "s",
        "less",
        "time in which the compute streams run nothing because they wait for transfers",
    ),
    Metric(
        "waiting_for_ranks_s",
        "s",
        "less",
        "the same for kernels that wait for other ranks to begin a transfer with",
    ),
    Metric(
        "launch_bound_s",
        "s",
        "less",
        "time in which the compute streams run nothing because the host has launched nothing",
    ),
    Metric(
        "other_idle_s",
        "s",
        "less",
        "time in which the compute streams run nothing otherwise: gaps, room on SMs, both ends",
    ),
    Metric("rank_wait_s", "s", None, "kernel time of waits for other ranks, kept as recorded"),
    Metric("host_speed", "ratio", None, "CPU speed over that of the recorded host"),
    Metric("communication_sms", "SMs", None, "SMs that dispatch and combine take"),
    Metric(
        "nic_bandwidth_bytes_per_s", "bytes/s", None, "line rate of NICs per GPU, each direction"
    ),
    Metric(
        "order_inversions",
        "pairs",
        "less",
        "kernels of communication and compute that change places with the recording",
    ),
    Metric("unmapped_share", "share", "less", "share of kernel time of which no work is known"),
    Metric("unmapped.kernels", "kernels", None, "kernels of one name of which no work is known"),
    Metric("unmapped.seconds", "s", None, "their recorded time"),
    Metric("duration_basis", "share", None, "share of kernel time by what the times rest on"),
    Metric("stream_wait_calls", "calls", None, "calls that make one stream wait for another"),
)

METRICS: Mapping[str, Mapping[str, Metric]] = {
    job: {metric.name: metric for metric in (*_EVERY_JOB, *own)}
    for job, own in (
        ("training", _TRAINING),
        ("serving_step", _SERVING_STEP),
        ("tpot_limit", _TPOT_LIMIT),
        ("offload", _OFFLOAD),
        ("collective", _COLLECTIVE),
        ("fleet", _FLEET),
        ("replay", _REPLAY),
    )
}
"""{job: {name: metric}}"""


def metric_of(path: str, job: str | None = None) -> Metric | None:
    """The metric that the figure at a dotted path of a run is; None where it is none.

    Args:
        job: the run's; without it the first job that has the name, since a name has one unit and
            one better direction in all of them.
    """
    parts = [part for part in path.replace("[]", "").split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in STATISTICS:
        parts.pop()
    tables = METRICS.values() if job is None else (METRICS[job],)
    for end in range(len(parts), 0, -1):
        for start in range(end):
            name = ".".join(parts[start:end])
            for table in tables:
                if name in table:
                    return table[name]
    return None
