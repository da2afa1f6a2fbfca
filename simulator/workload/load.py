"""The work of one GPU in one micro-batch, which decides the sizes of its operators."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reference_model.trace import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one GPU works on in one micro-batch."""

    tokens: int
    sequences: int
    context: int
    """Tokens that the last token of a sequence attends to, itself included."""
    expert_rows: int = 0
    """Rows of all local routed experts, one for each (token, local expert) pair."""
    received_rows: int = 0
    """Tokens that normal dispatch delivers, one for each (token, GPU) pair; with experts split over
    GPUs, those of all of them."""
    local_experts: int = 0
    """Local experts that have rows."""
    group_tokens: int
    """Of the GPUs that share attention heads, together; of this one where it has all heads."""
    group_sequences: int

    @property
    def query_length(self) -> int:
        """New tokens of one sequence."""
        return self.group_tokens // self.group_sequences

    def mean_tokens(self, attention_tp: int) -> float:
        """Tokens of a GPU, mean over those that share attention heads."""
        return self.group_tokens / attention_tp

    def last_tokens(self) -> Load:
        """One token of each sequence."""
        return replace(self, tokens=self.sequences, group_tokens=self.group_sequences)

    @property
    def workload(self) -> Workload:
        """Variables of an operator trace for this GPU."""
        return Workload(
            self.tokens,
            self.context,
            self.sequences,
            self.expert_rows,
            self.received_rows,
            self.local_experts,
        )
