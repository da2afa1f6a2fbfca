"""Metrics of collectives, fleets and replayed profiles."""

from __future__ import annotations

from simulator.analysis.metric import Metric
from simulator.analysis.step_metrics import EXPOSED_COMMUNICATION, WAITING_FOR_RANKS

COLLECTIVE = (
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
FLEET = (
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
PRETRAINING = (
    Metric("days", "d", "less", "wall-clock time of the run, mean over its seeds", leads=True),
    Metric(
        "gpu_hours", "h", "less", "GPU-hours of the run; spare nodes are not counted", leads=True
    ),
    Metric("cost_usd", "USD", "less", "rent of the GPUs of the run", leads=True),
    Metric(
        "tokens_per_day", "tokens/d", "more", "tokens trained on per day of the run", leads=True
    ),
    Metric(
        "gpu_hours_per_trillion_tokens",
        "h",
        "less",
        "GPU-hours per 10^12 tokens, with all that the run loses",
        leads=True,
    ),
    Metric(
        "goodput",
        "share",
        "more",
        "time in steps that were kept, at their usual speed, of the run",
        leads=True,
    ),
    Metric(
        "mfu_causal",
        "share",
        "more",
        "model FLOP of all kept steps over the BF16 dense peak for the whole run, attention counted"
        " causally",
        leads=True,
    ),
    Metric(
        "interruptions_per_day", "1/d", "less", "failures that stop the run, per day", leads=True
    ),
    Metric("runs", "runs", None, "seeds, each with its own failures and step time"),
    Metric("gpus", "GPUs", None, "GPUs of the run, spare nodes left out"),
    Metric("tokens", "tokens", None, "tokens of a phase or of the run"),
    Metric("steps", "steps", None, "optimizer steps of a phase or of the run"),
    Metric("days_by_cause", "d", "less", "time of the run by cause; the causes sum to its days"),
    Metric("share_by_cause", "share", "less", "the same over the days of the run"),
    Metric("incidents", "incidents", "less", "incidents of a kind in a run, mean over its seeds"),
    Metric("checkpoint.size_bytes", "bytes", "less", "state that a checkpoint holds"),
    Metric("checkpoint.interval_s", "s", None, "training between two checkpoints"),
    Metric("checkpoint.stall_s", "s", "less", "for which training stops at a checkpoint"),
    Metric(
        "checkpoint.write_s",
        "s",
        "less",
        "from the end of the stall until a checkpoint can be read",
    ),
    Metric("checkpoint.reload_s", "s", "less", "reading a checkpoint by all nodes"),
    Metric("checkpoint.count", "checkpoints", None, "checkpoints of a run that never fails"),
    Metric("phases.sequence_length", "tokens", None, "tokens of one sequence"),
    Metric("phases.step_time_s", "s", "less", "expected time of a step of full size"),
    Metric("phases.ideal_step_time_s", "s", "less", "the same with ranks that are alike"),
    Metric("phases.first_step_time_s", "s", "less", "expected time of the first step"),
)
REPLAY = (
    Metric("span_s", "s", "less", "from the start of the first kernel to the end of the last"),
    Metric("measured_span_s", "s", None, "the same in the recording"),
    Metric("compute_busy_s", "s", None, "time in which a compute stream computes"),
    Metric(
        "communication_busy_s",
        "s",
        None,
        "time in which a kernel of a communication stream or a collective of a compute stream runs",
    ),
    EXPOSED_COMMUNICATION,
    WAITING_FOR_RANKS,
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
