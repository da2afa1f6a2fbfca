"""Say what dispatch and combine send: bytes of tokens, and where DeepEP's tests send them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hardware_profiles.schema import CalibrationProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Bytes, BytesPerSecond, parse_quantity
from reference_model.formats import ACTIVATIONS
from reference_model.trace import Operator
from simulator.hardware.network.groups import Reach


def reach_of_tests(calibration: CalibrationProfile, ranks: int, *, gpus_each: int) -> Reach:
    """Where tokens go in DeepEP's tests among nodes of so many GPUs, the last one the rest."""
    nodes = -(-ranks // gpus_each)
    inputs = calibration.all_to_all
    return Reach(
        parts=(gpus_each,) * (nodes - 1) + (ranks - (nodes - 1) * gpus_each,),
        reached=(between_nodes(inputs.nodes_per_token, nodes) / nodes,) * nodes,
        gpus=min(float(ranks), between_nodes(inputs.ranks_per_token, nodes)),
    )


def payload_bytes(operator: Operator) -> Bytes:
    """Bytes of one token: its hidden values, and their scales where they are quantised."""
    return _payload(operator.dtype, operator["hidden"])


def _payload(dtype: str, hidden: int) -> Bytes:
    if dtype not in ACTIVATIONS:
        raise ValueError(
            f"dispatch or combine of dtype {dtype!r} is not known; known: {', '.join(ACTIVATIONS)}"
        )
    return float(ACTIVATIONS[dtype].stored_bytes(1, hidden))


def payload_of(row: Measurement) -> Bytes:
    """Bytes of all tokens of a measured row, each counted once."""
    sizes = dict(row.sizes)
    return sizes["tokens"] * _payload(row.dtype, sizes["hidden"])


def nic_of(row: Measurement) -> BytesPerSecond | None:
    """Line rate that each GPU of a measured row had between nodes; None where it does not say."""
    nic = row.condition("nic")
    return parse_quantity(nic, "bandwidth", f"measurement of {row.source}: nic") if nic else None


def between_nodes(table: Mapping[int, float], nodes: int) -> float:
    """Value at a number of nodes, linear in its logarithm; the nearest entry beyond the table."""
    known = sorted(table)
    return float(np.interp(np.log2(nodes), np.log2(known), [table[key] for key in known]))
