"""Files of a GPU and of a cluster of one's own, from a few numbers and what is shipped.

What no flag states is taken from the nearest shipped file, and its source says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from os.path import relpath
from pathlib import Path

from hardware_profiles.fields import Raw, to_profile
from hardware_profiles.profile_files import read_profile
from hardware_profiles.schema import (
    ClusterProfile,
    GpuProfile,
    gpu_of_device,
    known_calibrations,
    known_clusters,
    known_gpus,
    load_calibration,
    load_cluster,
    load_gpu,
    resolve_cluster,
)
from hardware_profiles.units import format_quantity
from simulator.scenario.commented import on_one_line

KERNELS_OF = ("training", "prefill", "decode")
"""Jobs whose kernels a calibration may hold."""

_FLAG = "given to dsv3sim init"

_PEAKS = {
    "fp4": ("fp4_e2m1",),
    "fp8": ("fp8_e4m3", "fp8_e5m2"),
    "bf16": ("bfloat16", "float16"),
}
"""{number that is given: operand types whose dense peak it is}"""

FLOP_PER_CLOCK_AND_SM = 256
"""Of FP32 outside the tensor cores: 128 multiply-adds, on Hopper, Ada and Blackwell alike (NVIDIA's
architecture whitepapers)."""

_GPU_NUMBERS = {
    "sms": ("sms", "streaming multiprocessors"),
    "clock": ("sm_clock", "of the SMs, at which the peaks are stated"),
    "bf16": ("", "dense peak, without sparsity"),
    "fp8": ("", "dense peak"),
    "memory": ("hbm_capacity", "that a driver reports"),
    "hbm": ("hbm_bandwidth", "read plus write"),
    "l2": ("l2_capacity", ""),
    "nvlink": ("nvlink_bandwidth", "per direction, all links of one GPU together"),
    "pcie": ("pcie_bandwidth", "per direction"),
    "power": ("power", "limit of the board"),
}
"""The ten numbers that describe a GPU: {option: (field, none of a peak; what it is)}."""


def gpu_named(text: str) -> str:
    """The shipped GPU that a name or a short one means ("h100": h100_sxm), or the path as it is."""
    if text in known_gpus() or "/" in text or text.endswith((".yaml", ".yml")):
        return text
    return gpu_of_device(text.replace("_", " ")) or text


def nearest_calibration(gpu: GpuProfile, job: str) -> str:
    """The shipped calibration whose kernel times stand for a GPU's: its own, or those restated from
    the nearest one.

    The architecture comes first, then kernels of that job, then those of engines before those of
    the reference model, and then the GPU whose rates are nearest.

    Args:
        job: "training", "prefill" or "decode".
    """

    def distance(name: str) -> tuple[bool, bool, bool, float, bool, str]:
        found = load_calibration(name)
        own, whose = load_gpu(found.gpu), found.kernels
        return (
            own.architecture != gpu.architecture,
            whose is None or job not in whose.jobs,
            whose is None or whose.kind != "engine",
            _apart(own, gpu),
            own.name != gpu.name,
            name,
        )

    return min(known_calibrations(), key=distance)


def _apart(one: GpuProfile, other: GpuProfile) -> float:
    """How far two GPUs are in what their kernels' times depend on: logarithms of their ratios."""
    rates = (
        (gpu.sms * gpu.sm_clock, gpu.hbm_bandwidth, max(map(gpu.peak, gpu.peak_compute)))
        for gpu in (one, other)
    )
    return round(sum(abs(log(a / b)) for a, b in zip(*rates, strict=True)), 12)


def nearest_gpu(gpu: GpuProfile) -> str:
    """The shipped GPU whose rates are nearest; of equal ones the GPU itself."""
    return min(known_gpus(), key=lambda name: (_apart(load_gpu(name), gpu), name != gpu.name, name))


def starting_gpu(
    name: str, given: Mapping[str, object], *, architecture: str | None, like: str | None
) -> str:
    """The file of a GPU, with a comment on every number.

    Args:
        given: {option of `dsv3sim init gpu`: value as a file has it}.
        architecture: None for that of `like`, or of the nearest shipped GPU.
        like: the shipped GPU that gives what is not given, peaks by SMs and clock; None where all
            ten numbers are.

    Raises:
        ValueError: a number is missing, or is not allowed.
    """
    base = read_profile("gpus", gpu_named(like))[0] if like is not None else {}
    missing = [f"--{option}" for option in _GPU_NUMBERS if option not in given]
    if missing and not base:
        raise ValueError(
            f"init gpu: {', '.join(missing)} not given; allowed: all ten numbers of a GPU, or "
            f"--like with a shipped one that has the rest: {', '.join(known_gpus())}"
        )
    raw: Raw = {"name": name, "architecture": architecture or base.get("architecture", "")}
    sources = {"architecture": _FLAG if architecture else f"as {base.get('name')}"}
    for option, (field, _) in _GPU_NUMBERS.items():
        if field:
            raw[field] = given.get(option, base.get(field))
            taken = f"as {base.get('name')}: {base.get('sources', {}).get(field)}"
            sources[field] = _FLAG if option in given else taken
    peaks = {t: given[option] for option, types in _PEAKS.items() if option in given for t in types}
    peaks |= {t: v for t, v in base.get("peak_compute", {}).items() if t not in peaks}
    raw["peak_compute"] = peaks
    profile = to_profile(GpuProfile, raw, where="init gpu")
    own = [option for option in _PEAKS if option in given]
    parts = [f"{', '.join(own)}: {_FLAG}"] if own else []
    if base:
        of = ""
        if {"sms", "clock"} & given.keys():
            # Each SM adds the same at each clock, as with --set cluster.node.gpu.sms.
            like_it = load_gpu(
                gpu_named(str(like)), {"sms": raw["sms"], "sm_clock": raw["sm_clock"]}
            )
            for dtype in peaks.keys() - {each for option in own for each in _PEAKS[option]}:
                peaks[dtype] = format_quantity(like_it.peak(dtype), "compute")
            of = ", by SMs and clock"
        parts.append(f"others as {base['name']}{of}: {base.get('sources', {}).get('peak_compute')}")
    if "float32" not in peaks:
        rate = FLOP_PER_CLOCK_AND_SM * profile.sms * profile.sm_clock
        peaks["float32"] = format_quantity(rate, "compute", digits=3)
        parts.append("float32: derived, 128 multiply-adds per SM and clock")
    sources["peak_compute"] = "; ".join(parts)
    if not raw["architecture"]:
        shipped = load_gpu(nearest_gpu(profile))
        raw["architecture"] = shipped.architecture
        sources["architecture"] = f"assumed: as the nearest shipped GPU, {shipped.name}"
    profile = to_profile(GpuProfile, raw, where="init gpu")
    what = {field: text for field, text in _GPU_NUMBERS.values() if field}
    lines = [
        f"# {on_one_line(name)}: a GPU of your own. Bandwidths per direction, peaks dense.",
        "# Its kernel times are restated from a measured GPU by the ceilings of both, with a wider",
        "# interval. Nearest calibrations: "
        + ", ".join(f"{job} {nearest_calibration(profile, job)}" for job in KERNELS_OF)
        + ".",
        *(
            _line(field, raw[field], what.get(field, ""))
            for field in raw
            if field != "peak_compute"
        ),
        "peak_compute:  # operand types that it multiplies, dense",
        *(f"  {each}: {on_one_line(value)}" for each, value in peaks.items()),
        "sources:",
        *(f"  {field}: {quoted(text)}" for field, text in sources.items()),
    ]
    return "\n".join(lines) + "\n"


_CLUSTER_LINES = {
    "nodes": "of the GPUs below",
    "gpu_price": "rent of one GPU with its share of the machine",
    "node": "one server",
    "node.gpu": "a shipped GPU, or a path to a file of one's own",
    "node.gpus": "joined by NVLink",
    "node.nics": "of the compute network",
    "node.nvlink_latency": "64 bytes, GPU to GPU",
    "node.nic.bandwidth": "line rate per direction",
    "fabric": "the network between nodes",
    "fabric.topology": "fat_tree_2, fat_tree_3, multi_plane_fat_tree, ...",
    "fabric.nvlink_domain_nodes": "nodes that NVLink joins, as the 18 of an NVL72 rack",
    "fabric.planes": "separate networks",
    "fabric.same_leaf_latency": "64 bytes under one switch, host to host",
    "fabric.cross_leaf_latency": "64 bytes through three switches",
    "fabric.link_price": "between switches, both ends and the cable",
}
"""{field of a cluster: what it is}; others explain themselves."""


def starting_cluster(
    path: Path, *, gpu: str, gpus: int, given: Mapping[str, object], like: str | None
) -> tuple[str, ClusterProfile]:
    """The file of a cluster, with comments, and what it says.

    Args:
        path: of the file.
        gpu: shipped name, a short one, or path.
        gpus: of the whole cluster.
        given: {dotted path of the profile, or "domain" for the GPUs of an NVLink domain: value}.
        like: the shipped cluster that gives all else; None for the one of the nearest GPU.

    Raises:
        ValueError: GPUs that fill no nodes, or values that no cluster can have.
    """
    named = gpu_named(gpu)
    base_name = like or nearest_cluster(load_gpu(named), gpus)
    base = read_profile("clusters", base_name)[0]
    changes = {name: value for name, value in given.items() if name != "domain"}
    node = base["node"]
    each = changes.setdefault("node.gpus", node["gpus"])
    assert isinstance(each, int), "the command line reads a whole number"
    if gpus % each:
        raise ValueError(
            f"init cluster: --gpus {gpus} does not fill nodes of {each}; allowed: a multiple of "
            f"{each}, or another --gpus-per-node of dsv3sim init cluster"
        )
    changes |= {"nodes": gpus // each, "name": path.stem}
    if "node.nic.bandwidth" in changes:
        changes["node.nic.name"] = "nic"
    if "node.nics" not in changes and node["nics"] * each % node["gpus"] == 0:
        changes["node.nics"] = node["nics"] * each // node["gpus"]
    domain = given.get("domain")
    if isinstance(domain, int):
        if domain % each:
            raise ValueError(
                f"init cluster: --nvlink-domain {domain}: allowed: whole nodes of {each} GPUs"
            )
        changes["fabric.nvlink_domain_nodes"] = domain // each
    where = f"init cluster, as {base_name}"
    raw = resolve_cluster(base, {"node.gpu": named, **changes}, where=where)
    cluster = to_profile(ClusterProfile, raw, where=where)
    _check(cluster)
    beside = named
    if "/" in named or named.endswith((".yaml", ".yml")):
        beside = f"./{relpath(named, path.parent)}"
    raw["node"]["gpu"] = beside
    order = ("name", "nodes", "gpu_price", "node", "fabric", "sources")
    ordered = {field: raw[field] for field in order if field in raw}
    lines = [f"# {gpus} GPUs in {gpus // each} nodes; what no flag said is as in {base_name}."]
    lines += _written(ordered, "", changes, base_name)
    return "\n".join(lines) + "\n", cluster


def nearest_cluster(gpu: GpuProfile, gpus: int) -> str:
    """The shipped cluster of the nearest GPU: the smallest that is as large, or else the largest;
    clusters that bear the GPU's name before those of a network."""
    shipped = nearest_gpu(gpu)
    found = {name: load_cluster(name) for name in known_clusters()}
    of_gpu = {name: one.gpus for name, one in found.items() if one.node.gpu.name == shipped}
    if not of_gpu:
        of_gpu = {name: one.gpus for name, one in found.items()}
    machine = shipped.split("_")[0]
    own = {name: size for name, size in of_gpu.items() if name.startswith(machine)} or of_gpu
    large = {name: size for name, size in own.items() if size >= gpus}
    if large:
        return min(large, key=lambda name: (large[name], name))
    return max(own, key=lambda name: (own[name], name))


def _check(cluster: ClusterProfile) -> None:
    """Raise ValueError where NICs cannot be shared out, or fewer GPUs than one domain are left."""
    node = cluster.node
    if node.nics % node.gpus and node.gpus % node.nics:
        raise ValueError(
            f"init cluster: {node.nics} NICs for {node.gpus} GPUs of a node; allowed: --nics-per-"
            "node so that one is a multiple of the other"
        )


def _written(block: Raw, at: str, changes: Mapping[str, object], base: str) -> list[str]:
    """Lines of a block: a comment where a field has one, then where each value comes from.

    Args:
        at: path of the block with a dot at its end; empty for the file.
    """
    depth = "  " * at.count(".")
    found = []
    for field, value in block.items():
        path = f"{at}{field}"
        what = _CLUSTER_LINES.get(path, "")
        if isinstance(value, dict) and field != "sources":
            found.append(f"{depth}{field}:" + (f"  # {what}" if what else ""))
            found += _written(value, f"{path}.", changes, base)
        elif field != "sources":
            found.append(depth + _line(field, value, what))
    own = {field: _FLAG for field in block if f"{at}{field}" in changes and field not in _NAMES}
    kept = {
        field: f"as {base}: {text}"
        for field, text in block.get("sources", {}).items()
        if f"{at}{field}" not in changes and field != "gpu"
    }
    if own or kept:
        found.append(f"{depth}sources:")
        found += [f"{depth}  {field}: {quoted(text)}" for field, text in (own | kept).items()]
    return found


_NAMES = ("name", "gpus", "nics")
"""What needs no source."""


def _line(field: str, value: object, what: str) -> str:
    text = f"{field}: {on_one_line(value)}"
    return f"{text}  # {what}" if what else text


def quoted(text: str) -> str:
    """Text as YAML reads it back, in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
