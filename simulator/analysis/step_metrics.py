"""Metrics of every job, of training and serving steps, and of the closed forms of decode."""

from __future__ import annotations

from dataclasses import replace

from simulator.analysis.metric import Metric

EXPOSED_COMMUNICATION = Metric(
    "exposed_communication_s",
    "s",
    "less",
    "time in which a rank's compute stream computes nothing because it waits for a transfer under"
    " way, one that nothing follows included, or takes part in a collective; gaps between kernels"
    " are no such time",
)
WAITING_FOR_RANKS = Metric(
    "waiting_for_ranks_s",
    "s",
    "less",
    "time in which a rank can go on only when others have come as far: in a pipeline, to produce"
    " what it needs or to end their optimizer; before a collective, to begin it",
)
TPOT = Metric("tpot_s", "s", "less", "time per output token of one request", leads=True)
TOKENS_PER_USER = Metric(
    "tokens_per_second_per_user",
    "tokens/s",
    "more",
    "output tokens per second of one request",
    leads=True,
)
EVERY_JOB = (
    Metric(
        "step_time_s",
        "s",
        "less",
        "time of one step: of training, of decode per token round, of a bound",
        leads=True,
    ),
    Metric("published", "", None, "published value, in the unit of its metric"),
    Metric("published.simulated", "", None, "simulated value, in the unit of the published one"),
    Metric("published.error", "share", None, "simulated / published - 1"),
    Metric("error_share", "share", None, "share of kernel time by where the times come from"),
    Metric(
        "kernels.own_rows_share",
        "share",
        None,
        "share of the time of kernels, dispatch and combine that occupy SMs among them, that the "
        "calibration's own rows decide; not of wires and collectives",
    ),
    Metric(
        "kernels.time_by_calibration",
        "share",
        None,
        "the same by the calibration or the shipped profile of transfers whose rows decide it",
    ),
    Metric("wall_clock_s", "s", "less", "how long the simulation itself took"),
    Metric("idle_nodes", "nodes", None, "nodes outside whole NVLink domains; none where all count"),
    Metric(
        "nvlink_domains",
        "GPUs",
        None,
        "GPUs of each axis in an NVLink domain; none where no GPUs share layers or sequences",
    ),
)
TRAINING = (
    Metric(
        "pair_time_s",
        "s",
        "less",
        "time of the overlapped forward and backward pair of a middle rank",
        leads=True,
    ),
    Metric(
        "tokens_per_day", "tokens/d", "more", "tokens that all GPUs train on per day", leads=True
    ),
    Metric(
        "tokens_per_second_per_gpu",
        "tokens/s",
        "more",
        "tokens trained on per second per GPU",
        leads=True,
    ),
    Metric(
        "tflops_per_gpu_causal",
        "TFLOP/s",
        "more",
        "model FLOP per second per GPU, attention counted causally",
        leads=True,
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
        leads=True,
    ),
    Metric(
        "mfu_non_causal",
        "share",
        "more",
        "model FLOP over the BF16 dense peak, attention counted in full",
    ),
    Metric("gpu_hours_per_trillion_tokens", "h", "less", "GPU hours per 10^12 tokens", leads=True),
    Metric(
        "cost_usd_per_trillion_tokens",
        "USD",
        "less",
        "rent of all GPUs per 10^12 tokens",
        leads=True,
    ),
    Metric(
        "bubble_s",
        "s",
        "less",
        "waiting of a pipeline rank for others, for sends and for the slowest optimizer; of the"
        " step, the rank that waits longest",
        leads=True,
    ),
    Metric(
        "peak_memory_bytes",
        "bytes",
        "less",
        "memory of the fullest GPU of all pipeline ranks; more where it gets more rows than others",
        leads=True,
    ),
    Metric("kernel_time_share", "share", None, "share of kernel time by where the times come from"),
    Metric(
        "waiting.by_cause_s",
        "s",
        "less",
        "what waiting for ranks with more rows, for slower GPUs and for hosts adds to the step",
    ),
    Metric(
        "waiting.by_rank_s",
        "s",
        "less",
        "waiting of each rank of a group before the all-to-alls of a pair, least first",
    ),
    Metric(
        "waiting.pair_notify_s",
        "s",
        "less",
        "waiting before each all-to-all of a pair, slot by slot, mean over ranks",
    ),
    Metric(
        "waiting.pair_notify_ends_s",
        "s",
        "less",
        "80% interval of what one rank waits before an all-to-all of a pair, on average",
    ),
    Metric(
        "waiting.pair_all_to_all_s",
        "s",
        "less",
        "time of each all-to-all of a pair once all ranks are ready, slot by slot",
    ),
    Metric(
        "waiting.upper_bound_s",
        "s",
        "less",
        "time of the step if every chunk took what it takes on the slowest group that runs it",
    ),
    Metric(
        "priors", "share", None, "share of the variance of the step time that an input explains"
    ),
    Metric("ridge.step_per_rows_sd", "ratio", None, "relative change of the step per rows_sd"),
    Metric("ridge.step_per_clock_sd", "ratio", None, "relative change of the step per clock_sd"),
    Metric(
        "ridge.rows_sd_per_clock_sd",
        "ratio",
        None,
        "rows_sd that a step time takes for as much of clock_sd: it does not tell them apart",
    ),
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
    replace(WAITING_FOR_RANKS, name="ranks.waiting_for_ranks_s"),
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
    replace(EXPOSED_COMMUNICATION, name="ranks.exposed_communication_s"),
    Metric(
        "ranks.hidden_communication_s",
        "s",
        None,
        "all-to-all time inside the chunks with a compute kernel running",
    ),
    Metric("memory", "bytes", "less", "memory of a pipeline rank by what it holds"),
    Metric(
        "cpu_memory.optimizer_bytes",
        "bytes",
        "less",
        "CPU memory of the fullest GPU's offloaded optimizer state, gradients and parameters on"
        " their way",
    ),
    Metric("cpu_memory.averages_bytes", "bytes", "less", "CPU memory of a GPU's moving averages"),
    Metric("cpu_memory.node_bytes", "bytes", "less", "of all GPUs of a node together"),
    Metric("cpu_memory.to_cpu_bytes", "bytes", "less", "what a GPU sends over PCIe in a step"),
    Metric("cpu_memory.to_gpu_bytes", "bytes", "less", "what it gets back"),
    Metric(
        "cpu_memory.averages_s",
        "s",
        "less",
        "copying to the CPU and averaging there, beside the next step",
    ),
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
SERVING_STEP = (
    Metric("pass_time_s", "s", "less", "time of one prefill pass", leads=True),
    TPOT,
    Metric(
        "input_tokens_per_second_per_gpu",
        "tokens/s",
        "more",
        "prompt tokens computed per second per GPU",
        leads=True,
    ),
    Metric(
        "input_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "prompt tokens computed per second per node",
        leads=True,
    ),
    Metric(
        "output_tokens_per_second_per_gpu",
        "tokens/s",
        "more",
        "output tokens per second per GPU",
        leads=True,
    ),
    Metric(
        "output_tokens_per_second_per_node",
        "tokens/s",
        "more",
        "output tokens per second per node",
        leads=True,
    ),
    TOKENS_PER_USER,
    replace(EXPOSED_COMMUNICATION, leads=True),
    Metric(
        "kv_cache_tokens_per_gpu",
        "tokens",
        "more",
        "tokens whose KV cache fits into a GPU",
        leads=True,
    ),
    Metric(
        "largest_batch_per_gpu",
        "requests",
        "more",
        "requests per GPU that the KV cache has room for",
        leads=True,
    ),
    Metric("tensor_parallel", "GPUs", None, "GPUs that each part of the model is split over"),
    Metric("time_budget_s", "s", None, "parts that an iteration's time consists of"),
    WAITING_FOR_RANKS,
    Metric("host_overhead_s", "s", "less", "time of the host between iterations"),
    Metric("kv_cache_bytes_per_token", "bytes", "less", "KV cache of one token in all layers"),
    Metric(
        "kv_cache_tokens_needed_per_gpu",
        "tokens",
        None,
        "tokens whose KV cache the job's requests need per GPU",
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
        "experts.placement",
        "ratio",
        "less",
        "tokens routed to the busiest GPU over the mean, by policy of placement, before chance: in "
        "the window that experts were placed for, and in the one served",
    ),
    Metric(
        "waiting.by_cause_s",
        "s",
        "less",
        "time beyond that of ideal ranks, by cause",
    ),
    Metric(
        "waiting.by_rank_s",
        "s",
        "less",
        "time in which a rank waits for others, mean over draws, from the rank that waits least",
    ),
    Metric("priors", "share", None, "share of the spread that each input explains by itself"),
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
    Metric(
        "speculative_decoding", "", None, "what drafting gains; none where the job does not draft"
    ),
    Metric(
        "speculative_decoding.tokens_per_step",
        "tokens",
        "more",
        "tokens that a request gains per step, expected",
    ),
    Metric(
        "speculative_decoding.step_time_without_s",
        "s",
        "less",
        "time of the step without drafted tokens",
    ),
    Metric(
        "speculative_decoding.by_batch.step_without_s",
        "s",
        "less",
        "time of the step without drafted tokens at a batch",
    ),
    Metric("speculative_decoding.by_batch.step_s", "s", "less", "time of the step at a batch"),
    Metric(
        "speculative_decoding.speed_up",
        "ratio",
        "more",
        "tokens per second of a request with drafting over without",
    ),
    Metric("speculative_decoding.by_batch.speed_up", "ratio", "more", "the same at a batch"),
    Metric(
        "speculative_decoding.by_batch.experts_speed_up",
        "ratio",
        "more",
        "the same if the routed experts' kernels were all of a step",
    ),
    Metric(
        "speculative_decoding.by_batch.active_experts",
        "experts",
        None,
        "local experts that a micro-batch touches, mean over GPUs and layers",
    ),
    Metric(
        "speculative_decoding.by_batch.active_experts_without",
        "experts",
        None,
        "the same without drafted tokens",
    ),
    Metric(
        "speculative_decoding.by_batch.batch", "requests", None, "requests of the whole deployment"
    ),
    Metric(
        "speculative_decoding.batch_of_best_gain",
        "requests",
        None,
        "requests of the deployment at which drafting gains most",
    ),
    Metric(
        "speculative_decoding.batch_of_least_gain",
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
TPOT_LIMIT = (
    TPOT,
    TOKENS_PER_USER,
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
OFFLOAD = (
    TPOT,
    TOKENS_PER_USER,
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
