"""FleetJob: the requests, pools and policies of a serving fleet, as a scenario file states them.

Every number of a service that is not measured has a source or is stated as an assumption. Token
counts are plain whole numbers; times, data, rates and prices are text with units.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from hardware_profiles.fields import BandwidthValue, DataValue, FrequencyValue, Profile, TimeValue
from simulator.scenario.inputs import Fraction, ServingRecipe, SpeculativeDecoding

Hourly = Annotated[tuple[PositiveFloat, ...], Field(min_length=24, max_length=24)]
HourlyCount = Annotated[tuple[NonNegativeInt, ...], Field(min_length=24, max_length=24)]
TraceFormat = Literal["azure", "mooncake", "burstgpt"]
PoolName = Literal["prefill", "decode", "colocated"]

HASHED_BLOCK_TOKENS = 512
"""Prompt tokens that one block hash of a request stands for (Mooncake, FAST'25 traces, README)."""


class Distribution(Profile):
    """How a token count varies from request to request; samples are rounded, at least 1."""

    kind: Literal["constant", "exponential", "lognormal", "quantiles"]
    """Form of the distribution; it says which of the fields below are needed."""
    mean: PositiveFloat | None = None
    """Of constant, exponential and lognormal, in tokens."""
    cv: PositiveFloat | None = None
    """Standard deviation over mean, of lognormal."""
    quantiles: dict[float, float] | None = None
    """{probability: tokens}; linear in between. Probabilities 0 and 1 must be there."""
    maximum: PositiveInt | None = None
    """Longer samples are cut to this."""

    @model_validator(mode="after")
    def _has_its_parameters(self) -> "Distribution":
        needed = {
            "constant": {"mean"},
            "exponential": {"mean"},
            "lognormal": {"mean", "cv"},
            "quantiles": {"quantiles"},
        }[self.kind]
        given = {name for name in ("mean", "cv", "quantiles") if getattr(self, name) is not None}
        if given != needed:
            raise ValueError(
                f"{self.kind} takes exactly {', '.join(sorted(needed))}; "
                f"given: {', '.join(sorted(given)) or 'nothing'}"
            )
        if self.quantiles is not None:
            _check_quantiles(self.quantiles)
        return self


class Sessions(Profile):
    """Conversations whose every turn repeats most of the prompt before it, for prefix caching."""

    shared_blocks: NonNegativeInt
    """Leading blocks that all requests share: the system prompt."""
    continue_probability: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    """That a further turn follows the first, second ... turn; the last one repeats, so that it
    must be below 1."""
    turn_gap_quantiles: dict[float, TimeValue]
    """Time from the arrival of one turn to that of the next: {probability: time}."""
    replaced_tokens_quantiles: dict[float, float]
    """Tokens at the end of the prompt before that a turn does not repeat (it branches off)."""
    added_tokens_quantiles: dict[float, float]
    """Tokens that a turn adds after what it repeats; the turns that replace most add most."""

    @model_validator(mode="after")
    def _sessions_end(self) -> "Sessions":
        if self.continue_probability[-1] >= 1.0:
            raise ValueError(
                "the last continue_probability is 1; allowed: less, or no session ever ends"
            )
        return self

    @model_validator(mode="after")
    def _quantiles_are_ordered(self) -> "Sessions":
        _check_quantiles(self.turn_gap_quantiles)
        _check_quantiles(self.replaced_tokens_quantiles)
        _check_quantiles(self.added_tokens_quantiles)
        return self


class SyntheticRequests(Profile):
    """Requests drawn from distributions."""

    arrivals: Literal["poisson", "gamma", "closed_loop"]
    """How requests arrive: poisson and gamma at a rate, closed_loop from users who wait for their
    answers."""
    rate: FrequencyValue | None = None
    """Mean arrivals per second of poisson and gamma, over a whole day if hourly_load is given."""
    cv: PositiveFloat | None = None
    """Standard deviation over mean of the time between gamma arrivals; 1 is Poisson."""
    users: PositiveInt | None = None
    """Of closed_loop: each sends its next request think_time after the end of the one before."""
    think_time: TimeValue | None = None
    """Mean of an exponential distribution."""
    count: PositiveInt
    """Requests in all; of sessions, first turns."""
    prompt_tokens: Distribution
    """Tokens of a prompt."""
    output_tokens: Distribution
    """Tokens of an answer."""
    hourly_load: Hourly | None = None
    """Load of each hour of the day, from time 0 on, over their mean; repeats daily."""
    cached_fraction: Fraction = 0.0
    """Part of every prompt that lies in the slowest tier of the prefix cache, as a given."""
    sessions: Sessions | None = None
    """Conversations whose every turn repeats most of the prompt before it; none: requests that
    share nothing."""
    priority_shares: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)
    """Weight of each priority, most urgent first."""

    @model_validator(mode="after")
    def _has_its_parameters(self) -> "SyntheticRequests":
        needed = {
            "poisson": {"rate"},
            "gamma": {"rate", "cv"},
            "closed_loop": {"users", "think_time"},
        }[self.arrivals]
        given = {n for n in ("rate", "cv", "users", "think_time") if getattr(self, n) is not None}
        if given != needed:
            raise ValueError(
                f"arrivals {self.arrivals} take exactly {', '.join(sorted(needed))}; "
                f"given: {', '.join(sorted(given)) or 'nothing'}"
            )
        if self.arrivals == "closed_loop" and (self.hourly_load or self.sessions):
            raise ValueError("closed_loop arrivals take neither hourly_load nor sessions")
        if self.sessions is not None and self.cached_fraction:
            raise ValueError("cached_fraction is the given hit rate; sessions produce their own")
        return self


class TimeWindow(Profile):
    """Part of a trace, in its own time from its first request."""

    start: TimeValue
    """From the first request of the trace."""
    end: TimeValue
    """From the first request of the trace; later than `start`."""

    @model_validator(mode="after")
    def _ordered(self) -> "TimeWindow":
        if self.end <= self.start:
            raise ValueError(
                f"end must be later than start, found {self.start:g} s, {self.end:g} s"
            )
        return self


class RequestSource(Profile):
    """Where requests come from: a recorded trace if ``file`` is given, else the synthetic ones."""

    file: str | None = None
    """Path of a recorded trace."""
    format: TraceFormat | None = None
    """Format of the file."""
    malformed: Literal["error", "skip"] = "error"
    """What a line that cannot be read is: an error, or skipped and counted."""
    rate_scale: PositiveFloat = 1.0
    """2 sends the same requests in half the time. Not for closed_loop."""
    window: TimeWindow | None = None
    """Only requests that arrive in it, before rate_scale. Not for closed_loop."""
    limit: PositiveInt | None = None
    """At most so many requests."""
    synthetic: SyntheticRequests | None = None
    """Requests drawn from distributions, where no file is given."""
    stands_for: str | None = None
    """File name of the trace whose statistics the synthetic requests have. The scenario's
    published figures hold for these two, not for any other file."""

    @model_validator(mode="after")
    def _says_one_source(self) -> "RequestSource":
        if self.file is None and self.synthetic is None:
            raise ValueError("needs file (with format) or synthetic")
        if self.file is not None and self.format is None:
            raise ValueError("file needs format: azure, mooncake or burstgpt")
        if self.closed_loop and (self.window is not None or self.rate_scale != 1.0):
            raise ValueError(
                "closed_loop arrivals take neither window nor rate_scale: the service sets their "
                "times"
            )
        return self

    @property
    def as_published(self) -> bool:
        """Whether the scenario's published figures are of these requests."""
        return self.file is None or Path(self.file).name == self.stands_for

    @property
    def closed_loop(self) -> bool:
        """Whether the end of one request causes the next."""
        return (
            self.file is None
            and self.synthetic is not None
            and self.synthetic.arrivals == "closed_loop"
        )


class AffineCoefficients(Profile):
    """Step times as sums of costs, for queueing studies and as a stand-in with stated origin."""

    decode_fixed: TimeValue
    """Of one decode step, whatever its batch."""
    decode_per_request: TimeValue
    """Of each request in the batch of a decode step."""
    decode_per_context_token: TimeValue
    """Per request and token of KV cache that it reads."""
    prefill_fixed: TimeValue
    """Of one prefill pass, whatever its tokens."""
    prefill_per_token: TimeValue
    """Of each new token of a prefill pass."""
    prefill_per_attended_token: TimeValue
    """Per new token and token that it attends to."""
    kv_capacity_tokens: NonNegativeInt
    """Of one data-parallel rank."""

    @model_validator(mode="after")
    def _takes_time(self) -> "AffineCoefficients":
        # A fleet with steps of no duration would do infinitely many of them in one instant.
        if self.decode_fixed + self.decode_per_request <= 0:
            raise ValueError("decode_fixed and decode_per_request are both 0; a step takes time")
        if self.prefill_fixed + self.prefill_per_token <= 0:
            raise ValueError("prefill_fixed and prefill_per_token are both 0; a pass takes time")
        return self


class StepScenario(Profile):
    """A scenario whose serving_step job is the deployment of an instance.

    The fleet sets its requests, iteration by iteration; all else, its calibration included, is as
    that scenario says.
    """

    scenario: str
    """A shipped scenario or a path to a YAML file."""
    changes: tuple[str, ...] = ()
    """Texts "path=value", as with --set: "skew.rows.max_over_mean=1.2"."""


class RebalancePolicy(Profile):
    """Moving experts between GPUs as their load changes; the instance stands still meanwhile."""

    interval: TimeValue
    """Time between two rebalancings."""
    pause: TimeValue | None = None
    """By default the time in which the GPUs of the deployment receive the experts that the job's
    placement gives them, coming from one that knows nothing of the load."""


class PoolSpec(Profile):
    """Equal instances that share a role. An instance is one expert-parallel group of GPUs."""

    instances: NonNegativeInt
    """Instances of the pool."""
    gpus_per_instance: PositiveInt
    """GPUs of an instance."""
    ranks: PositiveInt
    """Data-parallel ranks of an instance; each has its own requests and KV cache, and all of an
    instance step together at the pace of the slowest."""
    affine: AffineCoefficients | None = None
    """Step times from coefficients. Otherwise they come from the iterations below."""
    prefill_step: StepScenario | None = None
    """The deployment that computes prompts."""
    decode_step: StepScenario | None = None
    """The deployment that decodes."""
    kv_capacity_tokens: NonNegativeInt | None = None
    """Of one rank, in place of what the step times say."""
    page_tokens: PositiveInt | None = None
    """Tokens of one page of KV cache, in place of what the step times say (1 with affine). A
    request's last page is half empty on average, and counts so."""
    max_batch: PositiveInt
    """Requests that one rank decodes at once."""
    tokens_per_pass: PositiveInt | None = None
    """Prompt tokens that one rank takes in a pass; colocated: prompt plus decode tokens."""
    requests_per_pass: PositiveInt | None = None
    """Prompts that one rank starts in a pass; no limit by default."""
    rebalance: RebalancePolicy | None = None
    """Moving experts between GPUs as their load changes; none: where the deployment's placement
    puts them, for good."""
    hourly_instances: HourlyCount | None = None
    """Instances in service in each hour from time 0 on, at most ``instances``; repeats daily. One
    that has failed is replaced by another at the next hour.
    An instance that leaves finishes its requests first."""

    @model_validator(mode="after")
    def _hours_fit(self) -> "PoolSpec":
        if self.hourly_instances and max(self.hourly_instances) > self.instances:
            raise ValueError(
                f"hourly_instances asks for {max(self.hourly_instances)} of {self.instances}"
            )
        if self.hourly_instances and self.instances and not max(self.hourly_instances):
            raise ValueError(
                "hourly_instances are all 0; allowed: 1 or more in some hour, or no request is "
                "ever served"
            )
        return self


class CacheTier(Profile):
    """One place where the KV cache of finished prompts is kept, least recently used out first."""

    name: Literal["hbm", "host", "disk"]
    """Where it lies: the GPUs' own memory, the hosts', or disks."""
    scope: Literal["instance", "fleet"]
    """Whether each prefill instance has its own or all share one."""
    capacity_tokens: PositiveInt | Literal["unlimited"]
    """Tokens of KV cache that it holds, of one instance or of the fleet as `scope` says."""
    load_bandwidth: BandwidthValue | None = None
    """To one instance; none for a tier that is read in place."""

    @model_validator(mode="after")
    def _hbm_is_read_in_place(self) -> "CacheTier":
        if (self.name == "hbm") != (self.load_bandwidth is None):
            raise ValueError("hbm is read in place; every other tier needs load_bandwidth")
        if self.name == "hbm" and self.scope == "fleet":
            raise ValueError("hbm has scope instance: another instance cannot read it in place")
        return self


class PrefixCacheSpec(Profile):
    """Tiers that are searched in order; a prompt that was computed is written to all of them."""

    block_tokens: PositiveInt
    """Tokens of a block; prompts share whole blocks."""
    tiers: Annotated[tuple[CacheTier, ...], Field(min_length=1)]
    """Where the KV cache of finished prompts is kept, in the order in which it is searched."""


class KvTransfer(Profile):
    """Moving the KV cache of a prompt from a prefill to a decode instance: as flows over the
    cluster's fabric, or over links that each rank has to itself."""

    transport: str | None = None
    """Flows with the efficiencies of this transport profile; they share NICs and switches with each
    other, max-min fair, and take the fabric's latencies. GPUs are those of the pools in order."""
    latency: TimeValue | None = None
    """Latency of a rank's own link."""
    bandwidth: BandwidthValue | None = None
    """Bandwidth of a rank's own link, per direction; by default the slower of its NICs' and its
    PCIe's line rate."""

    @model_validator(mode="after")
    def _one_way(self) -> "KvTransfer":
        if (self.transport is None) == (self.latency is None):
            raise ValueError("needs transport or latency, not both")
        if self.transport is not None and self.bandwidth is not None:
            raise ValueError("bandwidth is of a rank's own link; a transport has its own")
        return self


class ServiceLevel(Profile):
    """What a request must meet to count as goodput."""

    ttft: TimeValue
    """Longest time to the first token."""
    tpot: TimeValue
    """Longest mean time per further token."""


class InstanceFailure(Profile):
    """An instance that goes down; its requests start again elsewhere."""

    pool: PoolName
    """Pool of the instance that fails."""
    instance: NonNegativeInt
    """Its number in the pool, from 0."""
    at: TimeValue
    """Time of the failure, from the start of the run."""
    returns_after: TimeValue | None = None
    """Time until the instance serves again; never, if not given."""


class FleetJob(Profile):
    """A service: requests through a prefill and a decode pool, or through one colocated pool."""

    requests: RequestSource
    """Where requests come from: a recorded trace, or distributions."""
    replicas: PositiveInt = 1
    """The service is so many equal copies of these pools, each on a cluster and with requests of
    its own; one is simulated. Nodes are those of all."""
    prefill: PoolSpec | None = None
    """Instances that compute prompts and hand their KV cache to decode instances."""
    decode: PoolSpec | None = None
    """Instances that decode what prefill instances have computed."""
    colocated: PoolSpec | None = None
    """Instances that do both, in the place of prefill and decode."""
    recipe: ServingRecipe = None
    """That of all steps; by default each step's own, else that of the model."""
    kv_bytes_per_token: DataValue | None = None
    """What transfers and prefix caches move; by default that of the KV caches of the named steps,
    or where none is named of the model in BF16."""
    kv_transfer: KvTransfer | None = None
    """Needed between a prefill and a decode pool."""
    prefix_cache: PrefixCacheSpec | None = None
    """Where the KV cache of finished prompts is kept for prompts that begin alike; none: every
    prompt is computed whole."""
    speculative_decoding: SpeculativeDecoding | None = None
    """Drafts that a decode step verifies; a request gains their expected tokens in every step."""
    routing: Literal["least_loaded", "round_robin", "prefix_aware"] = "least_loaded"
    """How a prompt finds its prefill instance: least prefill time queued, turn by turn, or least
    prefill time queued plus its own, counting what the instance's cache holds."""
    kv_admission: Literal["grow", "reserve"] = "grow"
    """grow: a request is let in when its present KV cache fits, and preempted when the cache runs
    full; reserve: only when its longest KV cache fits, so that nothing is ever preempted."""
    kv_watermark: Fraction = 0.0
    """Part of the KV cache that stays free at admission, for growth."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What becomes of a request whose KV cache has no room: computed again later, or moved to host
    memory and back."""
    swap_capacity_tokens: NonNegativeInt = 0
    """Host memory of one rank for preempted requests; beyond it they are recomputed."""
    max_waiting: PositiveInt | None = None
    """Requests that may wait for prefill; beyond it new ones are rejected."""
    service_level: ServiceLevel
    """What a request must meet to count as goodput."""
    warm_up: TimeValue
    """Requests that arrive earlier, and what happens earlier, do not count in the statistics."""
    horizon: TimeValue | None = None
    """End of the simulation, after the warm-up; by default when all requests have ended."""
    sample_interval: TimeValue
    """Between two looks at the queues, for the time series and the saturation verdict."""
    failures: tuple[InstanceFailure, ...] = ()
    """Instances that go down; their requests start again elsewhere."""

    @field_validator("sample_interval")
    @classmethod
    def _samples_are_apart(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be greater than 0")
        return value

    @model_validator(mode="after")
    def _has_its_pools(self) -> "FleetJob":
        pools = self.pools
        if set(pools) not in ({"prefill", "decode"}, {"colocated"}):
            raise ValueError(
                f"needs the pools prefill and decode, or colocated; given: "
                f"{', '.join(pools) or 'none'}"
            )
        colocated = pools.get("colocated")
        if colocated and (colocated.tokens_per_pass or 0) <= colocated.max_batch:
            raise ValueError(
                f"colocated: tokens_per_pass is {colocated.tokens_per_pass}; it must be greater "
                f"than max_batch ({colocated.max_batch}), or a full batch leaves no prompt a place"
            )
        if "decode" in pools and self.kv_transfer is None:
            raise ValueError("kv_transfer is needed between the pools prefill and decode")
        for name, pool in pools.items():
            self._check_step_times(name, pool)
            if name != "decode" and pool.tokens_per_pass is None:
                raise ValueError(f"{name}: tokens_per_pass is needed where prompts are computed")
        for failure in self.failures:
            if failure.pool not in pools or failure.instance >= pools[failure.pool].instances:
                raise ValueError(
                    f"failures: there is no instance {failure.instance} of {failure.pool}"
                )
        if self.horizon is not None and self.horizon <= self.warm_up:
            raise ValueError(
                f"horizon is {self.horizon:g} s; allowed: later than warm_up ({self.warm_up:g} s), "
                "or nothing is measured"
            )
        if self.prefix_cache is None and self._asks_for_cached_tokens:
            raise ValueError("requests.synthetic.cached_fraction needs a prefix_cache")
        cache = self.prefix_cache
        if cache and self._requests_have_hashes and cache.block_tokens != HASHED_BLOCK_TOKENS:
            raise ValueError(
                f"prefix_cache.block_tokens is {cache.block_tokens}; allowed with these requests: "
                f"{HASHED_BLOCK_TOKENS}, the tokens of one of their block hashes"
            )
        return self

    def _check_step_times(self, name: str, pool: PoolSpec) -> None:
        wanted = {
            f"{phase}_step" for phase in ("prefill", "decode") if name in (phase, "colocated")
        }
        steps = {"prefill_step": pool.prefill_step, "decode_step": pool.decode_step}
        given = {field for field, step in steps.items() if step is not None}
        if pool.affine and pool.rebalance and pool.rebalance.pause is None:
            raise ValueError(f"{name}: rebalance needs a pause where step times are affine")
        if given != (set() if pool.affine else wanted):
            raise ValueError(
                f"{name}: step times come from affine, or from {' and '.join(sorted(wanted))}; "
                f"given: {', '.join(sorted(given | ({'affine'} if pool.affine else set())))}"
                f"{'' if given or pool.affine else 'none'}"
            )

    @property
    def _asks_for_cached_tokens(self) -> bool:
        synthetic = self.requests.synthetic
        return synthetic is not None and synthetic.cached_fraction > 0

    @property
    def _requests_have_hashes(self) -> bool:
        source = self.requests
        if source.file is not None:
            return source.format == "mooncake"
        return source.synthetic is not None and source.synthetic.sessions is not None

    @property
    def pools(self) -> Mapping[str, PoolSpec]:
        """The pools that are given: {"prefill", "decode"} or {"colocated"}."""
        named = {"prefill": self.prefill, "decode": self.decode, "colocated": self.colocated}
        return {name: pool for name, pool in named.items() if pool is not None}

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens that a request receives from one decode step."""
        speculative = self.speculative_decoding
        return 1.0 if speculative is None else speculative.tokens_per_step


def _check_quantiles(quantiles: Mapping[float, float]) -> None:
    probabilities = sorted(quantiles)
    values = [quantiles[p] for p in probabilities]
    if not probabilities or probabilities[0] != 0.0 or probabilities[-1] != 1.0:
        raise ValueError("quantiles need the probabilities 0 and 1, and none outside")
    if any(later < earlier for earlier, later in pairwise(values)):
        raise ValueError("quantiles must not fall as the probability rises")
    if values[0] < 0:
        raise ValueError("quantiles must not be negative")
