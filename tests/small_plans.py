"""A job so small that plans of it take seconds: the debug model on two nodes."""

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
