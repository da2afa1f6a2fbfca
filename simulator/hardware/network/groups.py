"""How the GPUs of a group lie in NVLink domains, and where their tokens go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Domains:
    """How a group of GPUs lies in NVLink domains."""

    domains: int
    fewest: int
    most: int
    """GPUs of the group in one of the domains."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a token goes: how many nodes and GPUs hold one of its experts, on average."""

    parts: tuple[int, ...]
    """GPUs that the expert-parallel group has in each of its nodes."""
    reached: tuple[float, ...]
    """Of each node, the share of the group's tokens that reach it."""
    gpus: float
    """Distinct GPUs of a token, its own included."""

    @property
    def nodes(self) -> float:
        """Distinct nodes of a token, its own included."""
        return sum(self.reached)

    @property
    def over_nics(self) -> float:
        """Copies that the busiest NIC sends or receives, per token of a GPU.

        A GPU's NIC sends one copy to each other node reached; the NICs of n of the group's N GPUs
        share what the other N - n send to their node. With k equal nodes both are
        nodes x (1 - 1 / k).
        """
        group = sum(self.parts)
        return max(
            max(self.nodes - share, share * (group - part) / part)
            for share, part in zip(self.reached, self.parts, strict=True)
        )
