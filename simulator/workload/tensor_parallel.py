"""Tell the collectives of GPUs that share layers or sequences, and check what they share.

A recording of split layers (reference_model.tensor_parallel) has them as operators of their own,
at the places where Megatron-LM has them; context parallelism adds its own. They run on the compute
stream, where nothing of the same micro-batch can go on without them: none is overlapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reference_model.trace import COLLECTIVE_KINDS, Operator

SHARED_AXES: Mapping[str, str] = {
    "tensor": "tensor-parallel communication",
    "expert_tensor": "expert-tensor-parallel communication",
    "context": "context-parallel communication",
}
"""{axis whose GPUs share layers or sequences: what its collectives are called}"""


def shared_axis(operator: Operator) -> str | None:
    """The axis among whose GPUs a collective is; None of what is none."""
    if operator.kind not in COLLECTIVE_KINDS:
        return None
    return operator.name.rpartition(".")[2].rpartition("_")[0]


def gathered_bytes(operator: Operator) -> int:
    """Bytes that all GPUs of a collective's group hold once they are gathered, or before they are
    summed and scattered."""
    return max(operator.bytes_read, operator.bytes_written)


def check_tokens(sequence_length: int, *, tensor: int, context: int) -> None:
    """Raise ValueError where a GPU's part of a sequence is no whole number of tokens for each GPU
    that shares its layers."""
    if sequence_length % (tensor * context):
        raise ValueError(
            f"training.tensor_parallel: {tensor} GPUs share the tokens of sequences of "
            f"{sequence_length // context} tokens on each; allowed: training.sequence_length a "
            f"multiple of {tensor * context}"
        )


def straddling(axes: Mapping[str, Sequence[int]]) -> list[str]:
    """A warning for each axis whose groups do not lie in one NVLink domain.

    Args:
        axes: {axis: GPUs of a group in each of its domains}
    """
    return [
        f"{SHARED_AXES[axis]}: groups of {sum(parts)} GPUs lie in {len(parts)} NVLink domains, "
        "so that every gather and scatter of a layer crosses NICs; fewer GPUs, or training.axes, "
        "would keep them inside"
        for axis, parts in axes.items()
        if len(parts) > 1
    ]
