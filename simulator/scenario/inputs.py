"""Inputs that several kinds of job have, each under one name and in one form."""

from pydantic import Field, NonNegativeInt, PositiveInt

from hardware_profiles.fields import DataValue, Profile


class Skew(Profile):
    """How unevenly the gate loads the ranks of an expert-parallel group."""

    max_over_mean: float = Field(default=1.0, ge=1.0)
    """Tokens routed to the slowest rank over the mean of its group, where that is more than
    placement makes of equally popular experts (288 slots on 72 GPUs: 1.125)."""


class Experts(Profile):
    """Where routed experts lie."""

    redundant: NonNegativeInt = 0
    """Slots beyond one for each routed expert."""


class Memory(Profile):
    """What fills the memory of a GPU beside weights and what a job works on."""

    reserved: DataValue
    """CUDA context, graphs, libraries, fragmentation and communication buffers that the job does
    not state by themselves."""


class SpeculativeDecoding(Profile):
    """Multi-token prediction used to draft tokens that the next step verifies."""

    draft_tokens: PositiveInt
    """Tokens drafted for each request and step."""
    acceptance: float = Field(ge=0.0, le=1.0)
    """Probability that a drafted token is accepted, given that those before it were."""

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens that a request gains in a step: 1 + a + a^2 + ..."""
        return sum(self.acceptance**depth for depth in range(self.draft_tokens + 1))
