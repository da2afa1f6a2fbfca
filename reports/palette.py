"""Colours and names that all figures share."""

from collections.abc import Mapping

WORKS: Mapping[str, str] = {
    "F": "forward",
    "F&B": "forward and backward, overlapped",
    "B": "full backward",
    "I": "backward for inputs",
    "W": "weight gradient",
    "optimizer": "optimizer",
}
"""Works of an action in the order of legends, with their names."""

WORK_COLOURS: Mapping[str, str] = {
    "F": "#3f72af",
    "F&B": "#8d86b8",
    "B": "#d9813b",
    "I": "#efb884",
    "W": "#6aa568",
    "optimizer": "#6f6f6f",
}

PHASES: Mapping[str, str] = {
    "forward": "forward (F)",
    "recompute": "forward again",
    "input_grad": "input gradient (B)",
    "weight_grad": "weight gradient (W)",
}
"""Phases of an operator in the order of legends, with their names."""

PHASE_COLOURS: Mapping[str, str] = {
    "forward": WORK_COLOURS["F"],
    "recompute": "#9dbad9",
    "input_grad": WORK_COLOURS["B"],
    "weight_grad": WORK_COLOURS["W"],
}

BUDGET: Mapping[str, tuple[str, str]] = {
    "forward_s": ("forward", WORK_COLOURS["F"]),
    "backward_s": ("backward", WORK_COLOURS["B"]),
    "weight_s": ("weight gradient", WORK_COLOURS["W"]),
    "overlapped_s": ("overlapped pairs", WORK_COLOURS["F&B"]),
    "bubble_s": ("bubble", "#dededa"),
    "optimizer_s": ("optimizer", WORK_COLOURS["optimizer"]),
}
"""Parts of a rank's step in the order of stacking: metric -> (name, colour)."""

MEMORY: Mapping[str, tuple[str, str]] = {
    "weights": ("weights", "#3f72af"),
    "gradients": ("gradients", "#d9813b"),
    "optimizer": ("optimizer shard", "#6aa568"),
    "activations": ("activations", "#8d86b8"),
    "workspace": ("workspace", "#b9b9b4"),
    "reserved": ("reserved", "#dededa"),
}
"""Parts of a GPU's memory in the order of stacking: metric -> (name, colour)."""

PROVENANCE_COLOURS: Mapping[str, str] = {
    "measured": "#2f7d62",
    "interpolated": "#86bfa4",
    "extrapolated": "#e0b458",
    "modelled": "#c8714f",
}

INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e6e6e2"

CAUSES: Mapping[str, str] = {
    "arithmetic": "#2f7d62",
    "recomputation": "#3f72af",
    "tiles and HBM": "#3f72af",
    "kernel efficiency": "#3f72af",
    "other kernels": "#3f72af",
    "gaps between kernels": "#3f72af",
    "SMs and memory shared": "#d9813b",
    "exposed all-to-all": "#d9813b",
    "all-to-all slow-down": "#d9813b",
    "state in chunks": "#6f6f6f",
    "bubble": "#8d86b8",
    "pipeline transfers": "#8d86b8",
    "gradient reduction": "#6f6f6f",
    "optimizer update": "#6f6f6f",
    "orthogonalization": "#6f6f6f",
    "PCIe": "#6f6f6f",
    "update on the CPU": "#6f6f6f",
    "parameter gather": "#6f6f6f",
    "uncertain inputs": "#a8516e",
    "documents": "#a8516e",
    "imbalance": "#a8516e",
    "slower GPUs": "#a8516e",
    "host": "#a8516e",
}
"""Causes of a step's time with the colour of their sort: arithmetic, kernels, expert parallelism,
pipeline, optimizer, ranks that differ."""
