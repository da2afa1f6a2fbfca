"""What a fleet knows about one request between its arrival and its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.execution.fleet.log import Outcome
from simulator.workload.requests import Request

NEVER = -1.0
"""A time that has not come."""
NOWHERE = -1
"""The number of no instance."""


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request inside the service."""

    request: Request
    generated: int = 0
    """Output tokens so far."""
    cost_s: float = 0.0
    """Estimated time of its prefill, for balancing."""
    ready_s: float = 0.0
    """When what the slower cache tiers hold of it has been loaded."""
    loaded_tokens: int = 0
    """Prompt tokens that come from slower cache tiers."""
    computed: int = 0
    """Context tokens whose KV cache exists in the present prefill, cached ones included."""
    rank: int = -1
    """Data-parallel rank of the instance that holds its KV cache."""
    join_step: int = 0
    """Decode step of the instance at which it joined the batch."""
    leave_step: int = 0
    """Decode step after which it has all its tokens."""
    prefill_start_s: float = NEVER
    first_token_s: float = NEVER
    decode_start_s: float = NEVER
    last_token_s: float = NEVER
    cached_tokens: int = 0
    hit_blocks: int = 0
    prefill_instance: int = NOWHERE
    """Number of the instance that computed some of its prompt first."""
    decode_instance: int = NOWHERE
    """Number of the instance of its first decode step."""
    preemptions: int = 0
    restarts: int = 0
    order: tuple[int, int] = field(init=False)
    """Sort key: more urgent first, then first come, first served."""

    def __post_init__(self) -> None:
        self.order = (self.request.priority, self.request.index)

    @property
    def context(self) -> int:
        """Tokens whose KV cache a prefill has to provide: the prompt and what came out of it."""
        return self.request.prompt_tokens + self.generated

    @property
    def kv_tokens(self) -> int:
        """KV cache after its last token: that token's own entry comes with the next step."""
        return self.request.prompt_tokens + self.generated - 1

    @property
    def remaining(self) -> int:
        """Output tokens that are still to come."""
        return self.request.output_tokens - self.generated

    def row(self, end_s: float, outcome: Outcome) -> tuple[float, ...]:
        """The line of the log for a request that ends now, with the fields of RequestRow."""
        request = self.request
        return (
            request.index,
            request.arrival_s,
            self.prefill_start_s,
            self.first_token_s,
            self.decode_start_s,
            end_s,
            request.prompt_tokens,
            request.output_tokens,
            self.generated,
            self.cached_tokens,
            len(request.block_hashes),
            self.hit_blocks,
            request.priority,
            self.preemptions,
            self.restarts,
            outcome,
            self.prefill_instance,
            self.decode_instance,
        )
