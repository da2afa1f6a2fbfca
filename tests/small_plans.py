"""Jobs so small that plans of them take seconds: the debug model on two nodes, a service of 16B."""

SCENARIO = "dualpipe_h800_2048"
CHANGES = (
    "model=debug", "cluster.nodes=2", "training.global_batch_sequences=32",
    "training.sequence_length=256",
)  # fmt: skip
FIXED = {
    "tp": [1],
    "zero": [1, 3],
    "ep": [4, 8],
    "pp": [1, 2],
    "micro_batch": [1, 2],
    "recompute": ["published"],
}
IDEAL = ("training.skew=none", "training.stages=default")

HELD = (
    "--fix", "tp=1", "--fix", "ep=8", "--fix", "micro_batch=1", "--fix", "zero=1", "--fix",
    "recompute=published", "--jobs", "1",
)  # fmt: skip
PLAN_TRAINING = (
    "plan", "training", "--from", SCENARIO, *(part for c in CHANGES for part in ("--set", c)), *HELD
)  # fmt: skip
"""A command that bounds some ten layouts."""
PLAN_SERVING = (
    "plan", "serving", "--model", "moonlight_16b_a3b", "--gpu", "h200", "--rate", "20", "--prompt",
    "512", "--output", "16", "--no-sensitivity", "--no-mtp", "--jobs", "1",
)  # fmt: skip
"""A command that looks for a fleet of two GPUs."""
