"""Plans and comparisons of clusters, made up, for tests of how they are shown."""

# -- a training job --------------------------------------------------------------------------------


def layout_row(rank, layout, place, bound, parts, memory):
    step = sum(parts.values())
    metrics = {"step_time_s": step, "mfu_causal": 8 / step, "peak_memory_bytes": memory * 2.0**30}
    metrics |= {f"parts.{part}": seconds for part, seconds in parts.items()}
    return {
        "rank": rank, "layout": layout, "settings": {}, "place_by_bound": place, "bound_s": bound,
        "metrics": metrics, "reason": None,
    }  # fmt: skip


def step_parts(kernels, exchange):
    return {"kernels": kernels, "exposed all-to-all": exchange, "waiting for ranks": 1.0,
            "sends": 0.5, "optimizer": 0.5}  # fmt: skip


LAYOUTS = [
    layout_row(1, "PP16 EP64 dualpipe", 3, 15.0, step_parts(16.0, 2.0), 60),
    layout_row(2, "PP8 EP64 1f1b", 1, 14.0, step_parts(18.0, 2.0), 50),
    layout_row(3, "PP8 EP32 1f1b", 2, 14.5, step_parts(22.0, 1.0), 70),
]
UNFIT = {"rank": 4, "layout": "PP4 EP64 1f1b", "settings": {}, "place_by_bound": 4,
         "bound_s": 15.5, "metrics": {}, "reason": "does not fit memory"}  # fmt: skip
TRAINING_PLAN = {
    "scenario": "main", "gpus": 2048, "hbm_capacity_bytes": 80 * 2.0**30,
    "axes": {"pp": [4, 8, 16], "schedule": ["1f1b", "dualpipe"]},
    "bounded": 100, "pruned": 40, "simulated": 3, "bound_over_simulated": 0.64,
    "losers": {"simulated, slower": 2, "bound above the fastest simulated step": 40},
    "rows": [*LAYOUTS, UNFIT], "front": ["PP16 EP64 dualpipe", "PP8 EP64 1f1b"], "own": LAYOUTS[1],
    "recommendation": "Take PP16 EP64 dualpipe: an ideal step of 20 s and 60 GiB of 80 GiB per "
    "GPU; kernels are 80% of it, and what limits it beside them is exposed all-to-all (10.0%).",
}  # fmt: skip


def bought_row(gpus, layout, step_s, memory, *, within):
    run_s = 432_000 * step_s
    return {
        "gpus": gpus, "layout": layout, "step_time_s": step_s,
        "peak_memory_bytes": memory * 2.0**30, "usd_per_hour": float(gpus), "run_s": run_s,
        "usd": gpus * run_s / 3600, "within": within,
    }  # fmt: skip


BOUGHT = {
    "usd_per_hour": None, "usd": 5e6, "tokens": 14.8e12, "gpus_tried": [4096, 2048],
    "front": [
        bought_row(4096, "PP16 EP64 dualpipe", 15.0, 55, within=False),
        bought_row(2048, "PP16 EP64 dualpipe", 20.0, 60, within=True),
    ],
    "best": "The budget buys 2,048 GPUs at 2048 USD/h.",
}  # fmt: skip
BOUNDS = [14.0, 14.5, 15.0, 15.5, *(16.0 + n / 10 for n in range(96))]


# -- a service -------------------------------------------------------------------------------------

SERVING_PLAN = {
    "question": "deepseek_v3 on h200_sxm: 10 requests/s",
    "gpu": "h200_sxm",
    "limits": {"ttft_s": 2.0, "tpot_s": 0.05},
    "percentile": 90,
    "nodes": 8.0,
    "gpus": 64,
    "usd_per_hour": 128.0,
    "usd_per_million_tokens_in": 0.889,
    "usd_per_million_tokens_out": 26.7,
    "measured": {"ttft_s": 1.5, "tpot_s": 0.045},
    "recommendation": "Take 8 nodes (64 h200_sxm): prefill 2 x EP8; decode 3 x EP16. The nearest "
    "limit is TPOT, p90 45 ms of 50 ms; TPOT sets decode. It costs 128 USD/h: 0.889 USD.",
    "simulated": [
        {"fleet": "prefill 2 x EP8; decode 3 x EP16", "nodes": 8.0, "usd_per_hour": 128.0,
         "ttft_s": 1.5, "tpot_s": 0.045, "keeps": True, "reason": ""},
        {"fleet": "prefill 2 x EP8; decode 2 x EP16", "nodes": 6.0, "usd_per_hour": 96.0,
         "ttft_s": 1.5, "tpot_s": None, "keeps": False, "reason": "TPOT over the limit"},
    ],
    "options": [{"role": "decode", "deployment": "EP16", "instances": 3, "nodes": 6.0,
                 "binds": "TPOT", "predicted_s": 0.045, "max_batch": 64}],
    "sensitivity": [{"limit": "TPOT limit doubled, 100 ms", "nodes": 6.0, "change": -2.0,
                     "fleet": "prefill 2 x EP8; decode 2 x EP16"}],
    "searched": 5,
    "losers": [{"reason": "does not fit", "count": 2, "example": "decode EP4"}],
}  # fmt: skip
SERVING_PLANS = {"best": 0, "plans": [SERVING_PLAN]}


# -- one job on several clusters -------------------------------------------------------------------

H800 = {
    "cluster": "h800_2048", "gpu": "h800_sxm", "gpus": 2048, "calibration": "h800_sxm",
    "step_time_s": 20.0, "tokens_per_second_per_gpu": 1500.0, "usd_per_gpu_second": 2 / 3600,
    "usd_per_million_tokens": 0.3704, "watts_per_gpu": 600.0, "joules_per_token": 0.4,
    "power_measured_on": ["h800_sxm"],
    "kernels": {"training": {"calibration": "h800_sxm", "kind": "engine"}},
}  # fmt: skip
GB200 = H800 | {
    "cluster": "gb200_nvl72", "gpu": "gb200", "gpus": 256, "step_time_s": 40.0,
    "tokens_per_second_per_gpu": 6000.0, "usd_per_million_tokens": 0.4, "joules_per_token": 0.2,
    "power_measured_on": ["h100_sxm"],
    "kernels": {"training": {"calibration": "gb200_reference", "kind": "reference"}},
}  # fmt: skip
H20 = {"cluster": "h20_32", "gpu": "h20_sxm", "reason": "does not fit"}
