"""One palette: a few hues that tell apart for every eye, and the role that each plays.

Charts name hues, never colours: a page fills them in for light and for dark, a figure of its own
for light.
"""

from collections.abc import Mapping

HUES: Mapping[str, tuple[str, str]] = {
    "blue": ("#114e7e", "#3f8aec"),
    "sky": ("#2d96e5", "#3fbff3"),
    "orange": ("#dd7826", "#f59b55"),
    "amber": ("#533b08", "#f8ba02"),
    "green": ("#04a873", "#27dd9c"),
    "purple": ("#7c1fd3", "#8733f7"),
    "red": ("#e62e4e", "#d60435"),
    "grey": ("#76808b", "#939aa0"),
    "pale": ("#c3c8d0", "#4a515c"),
    "ink": ("#1c2026", "#e8eaee"),
}
"""Hue -> (on light, on dark). All but pale, which is room that nothing fills, stand out from the
background by 3:1."""

BACKGROUND = ("#ffffff", "#14171c")
SOFT = ("#f4f5f7", "#1d2128")
"""Behind heads of tables, code and the answer."""
MUTED = ("#59616d", "#a6afbb")
"""Words of second rank, axes and their ticks."""
GRID = ("#e3e6ea", "#2c323b")
LINK = ("#0b5cad", "#7fbcff")

_SLOPE, _BEND = 12.92, 0.04045
"""Of sRGB's curve near black, and where that ends."""


def luminance(colour: str) -> float:
    """Relative luminance of a hexadecimal colour, from 0 to 1, as WCAG 2 defines it."""

    def linear(part: str) -> float:
        value = int(part, 16) / 255
        return value / _SLOPE if value <= _BEND else float(((value + 0.055) / 1.055) ** 2.4)

    red, green, blue = (linear(colour[at : at + 2]) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """How far two colours stand apart, from 1 to 21, as WCAG 2 defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def words_on(hue: str, theme: int) -> str:
    """The colour of words on a hue: black or white, whichever stands out more."""
    return max(("#000000", "#ffffff"), key=lambda colour: contrast(colour, HUES[hue][theme]))


COLOURS: Mapping[str, tuple[str, str]] = {
    **HUES,
    "muted": MUTED,
    "grid": GRID,
    "paper": BACKGROUND,
    "soft": SOFT,
    "link": LINK,
}
"""Every name that charts and pages may fill in."""

USE = (
    "#fff3c4", "#ffe08a", "#ffc65c", "#fca63f", "#f4822f",
    "#e25d2b", "#c43c33", "#9c2340", "#6d1446",
)  # fmt: skip
"""A link's use from 0 to 1, light to dark, the same on both backgrounds."""

SERIES = ("blue", "orange", "green", "purple", "red", "amber", "grey", "sky")
"""Hues of series that play no role of their own, in order."""

WORKS: Mapping[str, tuple[str, str]] = {
    "F": ("forward", "blue"),
    "F&B": ("forward and backward, overlapped", "purple"),
    "B": ("full backward", "orange"),
    "I": ("backward for inputs", "amber"),
    "W": ("weight gradient", "green"),
    "optimizer": ("optimizer", "grey"),
}
"""Works of an action in the order of legends: (name, hue)."""

PHASES: Mapping[str, tuple[str, str]] = {
    "forward": ("forward (F)", "blue"),
    "recompute": ("forward again", "sky"),
    "input_grad": ("input gradient (B)", "orange"),
    "weight_grad": ("weight gradient (W)", "green"),
}
"""Phases of an operator in the order of legends."""

BUDGET: Mapping[str, str] = {
    "forward_s": "blue",
    "backward_s": "orange",
    "weight_s": "green",
    "overlapped_s": "purple",
    "bubble_s": "pale",
    "optimizer_s": "grey",
}
"""Parts of a rank's step in the order of stacking, by metric."""

MEMORY: Mapping[str, tuple[str, str]] = {
    "weights": ("weights", "blue"),
    "gradients": ("gradients", "orange"),
    "optimizer": ("optimizer shard", "green"),
    "activations": ("activations", "purple"),
    "all_to_all_buffers": ("all-to-all buffers", "purple"),
    "expert_buffers": ("expert buffers", "amber"),
    "workspace": ("workspace", "grey"),
    "reserved": ("reserved", "pale"),
    "KV cache": ("KV cache", "green"),
}
"""Parts of a GPU's memory in the order of stacking, by metric."""

PROVENANCE: Mapping[str, str] = {
    "measured": "green",
    "interpolated": "blue",
    "extrapolated": "amber",
    "modelled": "orange",
}
"""How a time was found."""

CAUSES: Mapping[str, str] = {
    "arithmetic": "green",
    "recomputation": "blue",
    "tiles and HBM": "blue",
    "kernel efficiency": "blue",
    "other kernels": "blue",
    "gaps between kernels": "blue",
    "SMs and memory shared": "orange",
    "exposed all-to-all": "orange",
    "all-to-all slow-down": "orange",
    "state in chunks": "grey",
    "bubble": "purple",
    "pipeline transfers": "purple",
    "gradient reduction": "grey",
    "optimizer update": "grey",
    "orthogonalization": "grey",
    "PCIe": "grey",
    "update on the CPU": "grey",
    "parameter gather": "grey",
    "uncertain inputs": "red",
    "documents": "red",
    "imbalance": "red",
    "slower GPUs": "red",
    "host": "red",
}
"""Causes of a step's time by their sort: arithmetic, kernels, expert parallelism, pipeline,
optimizer, ranks that differ."""

SORTS: Mapping[str, str] = {
    "arithmetic": "green",
    "kernels": "blue",
    "expert parallelism": "orange",
    "pipeline": "purple",
    "optimizer": "grey",
    "ranks that differ": "red",
}
"""What the hues of causes mean."""
