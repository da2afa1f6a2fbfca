"""Search the deployments of a service, cheapest first, until a simulated one keeps its limits.

What is known is looked at, and what should be worked out next is said; nothing here prices or
simulates. Fleets are ranked by their GPUs. A pool counts with the fewest instances that its bound
allows and that no simulation has shown to be too few, so the first fleet that keeps the limits is
the smallest; one instance fewer of each pool is simulated as well before it is recommended.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

from hardware_profiles.units import Seconds, format_bytes
from simulator.analysis.plan.serving_bounds import (
    Demand,
    Limits,
    interpolated,
    least_decode,
    least_prefill,
    most_colocated,
    predicted_tpot,
)
from simulator.analysis.plan.serving_prices import BATCHES, PASSES, Measured, Price
from simulator.execution.fleet.kept_points import KnownTimes
from simulator.scenario.starting_serving import (
    Deployment,
    Pool,
    Service,
    starting_deployment,
)
from simulator.workload.recipes import RECIPES, recipe_name
from simulator.workload.serving_memory import weight_bytes

Fleet: TypeAlias = tuple[Pool, ...]
"""A prefill and a decode pool, or a colocated one."""

NODES = (1, 2, 4, 8, 9, 16, 18)
"""Nodes of one instance that are searched; fewer GPUs than a node's in powers of two, and whole
NVLink domains."""
COLOCATED_NODES = 4
"""Nodes of an instance that does both, or its NVLink domain where that is larger: what engines
run."""
SIMULATED = "simulation of fewer"
"""What sets a number of instances that is above its bound."""
AT_A_TIME = 6
"""Options of a role that are worked out together before they are ranked again."""
ATTENTION_TP = 4
"""GPUs that share heads in prefill besides one or all (arXiv 2412.19437, section 3.4.1)."""


@dataclass(frozen=True, slots=True)
class PriceTask:
    """A deployment to price."""

    deployment: Deployment
    expected: bool
    tpot_s: Seconds = 0.0
    """Of an expected decode price, the limit at which it is looked for; 0: all of the plan's."""


SearchTask: TypeAlias = PriceTask | Fleet
"""A deployment to price, or a fleet to simulate: a prefill pool alone by its first tokens."""


@dataclass(frozen=True, slots=True)
class Results:
    """What has been worked out so far."""

    prices: dict[PriceTask, Price] = field(default_factory=dict)
    runs: dict[Fleet, Measured] = field(default_factory=dict)
    times: dict[Deployment, KnownTimes] = field(default_factory=dict)
    """Grid points of passes and steps, of ranks that differ."""

    @property
    def count(self) -> int:
        """Tasks that have been worked out."""
        return len(self.prices) + len(self.runs)

    def of(self, task: SearchTask) -> Price | Measured | None:
        """The result of a task, if it is known."""
        return self.prices.get(task) if isinstance(task, PriceTask) else self.runs.get(task)

    def add(self, task: SearchTask, found: Price | Measured) -> None:
        """Keep the result of a task."""
        if isinstance(task, PriceTask):
            assert isinstance(found, Price)
            self.prices[task] = found
        else:
            assert isinstance(found, Measured)
            self.runs[task] = found

    def price(self, deployment: Deployment, limits: Limits) -> Price | None:
        """The price of a deployment: of ranks that differ where that is known, else of ideal ones,
        if at all."""
        found = self.prices.get(expected_price(deployment, limits))
        return found or self.prices.get(PriceTask(deployment, expected=False))


def expected_price(deployment: Deployment, limits: Limits) -> PriceTask:
    """The task of pricing a deployment with ranks that differ."""
    limit = limits.tpot_s if deployment.phase == "decode" else 0.0
    return PriceTask(deployment, expected=True, tpot_s=limit)


@dataclass(frozen=True, slots=True)
class PoolOption:
    """A pool with the fewest instances that may do."""

    pool: Pool
    bound: int
    """Instances that its steady state needs at least."""
    expected: bool
    """Whether its prices are of ranks that differ."""
    unsettled: tuple[SearchTask, ...]
    """What is to be worked out before fleets with it are simulated."""
    predicted_s: Seconds
    """Prefill: time of a long prompt alone; decode and colocated: time per token."""
    binds: str
    """What sets its number of instances; empty before it is priced."""

    @property
    def order(self) -> tuple[float, ...]:
        """The fewest GPUs first, of as many what is settled, then the shortest times."""
        size = self.pool.deployments[0].gpus
        return (self.pool.gpus, bool(self.unsettled), self.predicted_s, size)


@dataclass(frozen=True, slots=True)
class Loser:
    """A deployment that cannot serve at all, and why."""

    deployments: tuple[Deployment, ...]
    kind: str
    """One of few, to count by."""
    reason: str


@dataclass(frozen=True, slots=True)
class Search:
    """One question: a service, limits, and where deployments may differ."""

    service: Service
    demand: Demand
    limits: Limits
    deployments: tuple[Deployment, ...]
    check_fewer: bool = True
    """Whether one instance fewer of each pool is simulated before a fleet is the answer."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a search stands."""

    answer: Fleet | None
    """The smallest fleet that is simulated and keeps the limits, so far."""
    wanted: tuple[SearchTask, ...]
    """What to work out next, most urgent first; nothing where the search has ended."""
    options: Mapping[str, tuple[PoolOption, ...]]
    """{role: pools, best first}."""
    losers: tuple[Loser, ...]


def searched_deployments(service: Service) -> tuple[Deployment, ...]:
    """All deployments that are searched for a service: sizes, what is split, copies, drafts."""
    machine, config = service.machine, service.config
    most = min(config.n_routed_experts, machine.profile.gpus)
    node, domain = machine.node_gpus, machine.domain_gpus
    small = {2**n for n in range(1, node.bit_length()) if 2**n < node and node % 2**n == 0}
    sizes = sorted({*small, *(node * n for n in NODES), domain})
    drafts = (0, 1) if config.num_nextn_predict_layers else (0,)
    found: list[Deployment] = []
    for gpus in (size for size in sizes if size <= most):
        if gpus <= min(domain, 2 * node) and config.num_attention_heads % gpus == 0:
            found.append(starting_deployment(service, "prefill", gpus=gpus, split=True))
            one = starting_deployment(service, "decode", gpus=gpus, split=True)
            found += [replace(one, draft_tokens=number) for number in drafts]
        for copies in (0, 1):
            one = starting_deployment(service, "prefill", gpus=gpus, split=False, copies=copies)
            found.append(one)
            if gpus % ATTENTION_TP == 0 and config.num_attention_heads % ATTENTION_TP == 0:
                found.append(replace(one, attention_tp=ATTENTION_TP))
            one = starting_deployment(service, "decode", gpus=gpus, split=False, copies=copies)
            found += [replace(one, draft_tokens=number) for number in drafts]
    return tuple(found)


def too_large(service: Service, deployment: Deployment) -> str | None:
    """Why a deployment's routed experts cannot fit its GPUs, before anything is priced."""
    config, gpus = service.config, deployment.gpus
    recipe = RECIPES[recipe_name(service.recipe, config)]
    # What all GPUs hold besides, some layouts split.
    held = weight_bytes(config, recipe, gpus=gpus) - weight_bytes(config, recipe, gpus=_ENDLESS)
    capacity = service.machine.profile.node.gpu.hbm_capacity
    if held <= capacity:
        return None
    return f"{format_bytes(held)} of experts on each of {gpus} GPUs of {format_bytes(capacity)}"


_ENDLESS = 2**60


def progress_of(search: Search, known: Results) -> Standing:
    """Where a search stands, and what it wants next."""
    usable = [
        each
        for each in search.deployments
        if (search.limits.drafting or not each.draft_tokens)
        and too_large(search.service, each) is None
    ]
    losers = [
        Loser((each,), "does not fit", reason)
        for each in search.deployments
        if (reason := too_large(search.service, each)) is not None
    ]
    short = _too_short(search, known)
    options: dict[str, list[PoolOption]] = {"prefill": [], "decode": [], "colocated": []}
    for found in _options(search, known, usable, short):
        if isinstance(found, Loser):
            losers.append(found)
        else:
            options[found.pool.role].append(found)
    ranked = {role: tuple(sorted(of, key=lambda o: o.order)) for role, of in options.items()}
    kept = [
        task
        for task, run in known.runs.items()
        if len(roles_of(task)) and keeps(run, search.limits) and _allowed(task, search)
    ]
    answer = min(kept, key=_gpus, default=None)
    wanted = dict.fromkeys(_wanted(search, known, ranked, answer, short))
    return Standing(answer, tuple(wanted), ranked, tuple(losers))


def roles_of(pools: Fleet) -> tuple[str, ...]:
    """Roles of a whole fleet; none of a pool that was simulated alone."""
    return () if pools[0].role == "prefill" and len(pools) == 1 else tuple(p.role for p in pools)


def _allowed(pools: Fleet, search: Search) -> bool:
    return search.limits.drafting or not any(d.draft_tokens for p in pools for d in p.deployments)


def _gpus(pools: Fleet) -> int:
    return sum(pool.gpus for pool in pools)


def keeps(run: Measured, limits: Limits) -> bool:
    """Whether a simulated fleet keeps limits, and keeps up with its requests."""
    return (
        run.reason is None
        and run.verdict != "overloaded"
        and not run.rejected
        and run.ttft_s <= limits.ttft_s
        and run.tpot_s <= limits.tpot_s
    )


def _too_short(search: Search, known: Results) -> dict[Pool, float]:
    """{pool, as of one instance: the most instances of it that a simulation shows to be too few};
    infinite where it does not run, or holds no request of some length."""
    found: dict[Pool, float] = {}
    for task, run in known.runs.items():
        # What is late beside a pool that drafts may be in time beside another.
        if keeps(run, search.limits) or not _allowed(task, search):
            continue
        never = run.reason is not None or run.rejected
        pools = task if never else _responsible(task, run, search.limits)
        for pool in pools:
            one = replace(pool, instances=1)
            found[one] = max(found.get(one, 0), math.inf if never else pool.instances)
    return found


def _responsible(pools: Fleet, run: Measured, limits: Limits) -> Fleet:
    """The pools of a fleet that has failed of which there are too few instances."""
    if len(pools) == 1:
        return pools
    prefill, decode = pools
    behind_in_decode = run.decode_wait_s > run.queueing_s
    if run.tpot_s > limits.tpot_s or (run.verdict == "overloaded" and behind_in_decode):
        # Requests that wait for decode hold their KV cache in prefill, and may be why that is late.
        return (decode,)
    return (prefill,)


def _options(
    search: Search, known: Results, usable: list[Deployment], short: Mapping[Pool, float]
) -> Iterator[PoolOption | Loser]:
    """Pools of every deployment that is priced, and those that cannot serve."""
    prices = {each: known.price(each, search.limits) for each in usable}
    for deployment, price in prices.items():
        if price is None:
            yield _unpriced(Pool((deployment,), 1, 1), (deployment,))
        elif price.reason is not None:
            yield Loser((deployment,), _kind_of(price.reason), price.reason)
        elif deployment.phase == "prefill":
            yield from _prefill_options(search, known, deployment, price, short)
        else:
            yield _decode_option(search, deployment, price, short)
    machine = search.service.machine
    most = max(machine.domain_gpus, COLOCATED_NODES * machine.node_gpus)
    for prefill, decode in itertools.product(usable, usable):
        if prefill.gpus > most or not _share_gpus(prefill, decode):
            continue
        passes, steps = prices[prefill], prices[decode]
        if passes is None or steps is None:
            both = (prefill, decode)
            missing = [each for each in both if prices[each] is None]
            yield _unpriced(Pool(both, 1, 1), missing)
        elif passes.reason is None and steps.reason is None:
            yield from _colocated_options(search, known, (prefill, decode), (passes, steps), short)


def _unpriced(pool: Pool, missing: Iterable[Deployment]) -> PoolOption:
    """A pool of which nothing is known but that it has an instance."""
    tasks = tuple(PriceTask(each, expected=False) for each in missing)
    return PoolOption(pool, 1, False, tasks, 0.0, "")


def _to_expect(
    known: Results, limits: Limits, deployments: Iterable[Deployment]
) -> tuple[SearchTask, ...]:
    """Prices with ranks that differ that are not known yet."""
    tasks = (expected_price(each, limits) for each in deployments)
    return tuple(task for task in tasks if task not in known.prices)


def _kind_of(reason: str) -> str:
    return "does not fit" if "beside its KV cache" in reason else "cannot run"


def _share_gpus(prefill: Deployment, decode: Deployment) -> bool:
    """Whether both phases can share the weights of one instance."""
    return (prefill.phase, decode.phase) == ("prefill", "decode") and all(
        getattr(prefill, name) == getattr(decode, name)
        for name in ("gpus", "attention_tp", "expert_tp", "redundant")
    )


def _with_least(pool: Pool, bound: int, short: Mapping[Pool, float], most: int) -> Pool | Loser:
    """The pool with the fewest instances that may do, where the cluster has as many GPUs."""
    least = max(bound, short.get(replace(pool, instances=1), 0) + 1)
    gpus = least * pool.gpus
    if least == math.inf:
        return Loser(pool.deployments, "cannot run", "its fleet does not run, or holds no request")
    if gpus > most:
        return Loser(
            pool.deployments,
            "needs more GPUs than the cluster has",
            f"{gpus:,.0f} GPUs, and the cluster has {most:,}",
        )
    return replace(pool, instances=int(least))


def _prefill_options(
    search: Search,
    known: Results,
    deployment: Deployment,
    price: Price,
    short: Mapping[Pool, float],
) -> Iterator[PoolOption | Loser]:
    limits = search.limits
    in_time = {tokens: alone for tokens, alone in price.alone_s.items() if alone <= limits.ttft_s}
    if not in_time:
        least = min(price.alone_s.values())
        yield Loser(
            (deployment,),
            "a prompt alone takes longer than the TTFT limit",
            f"a long prompt that meets no other takes {least:.3g} s",
        )
    passes = {int(tokens): seconds for tokens, seconds in price.seconds.items()}
    room = search.service.machine.profile.gpus
    for tokens, alone in in_time.items():
        bound = least_prefill(
            search.demand, ranks=deployment.ranks, tokens_per_pass=tokens, passes=passes
        )
        pool = _with_least(Pool((deployment,), 1, BATCHES[-1], tokens), bound, short, room)
        if isinstance(pool, Loser):
            yield pool
            continue
        binds = "prefill throughput" if pool.instances == bound else "TTFT"
        unsettled = _to_expect(known, limits, (deployment,))
        if not unsettled and (pool,) not in known.runs:
            unsettled = ((pool,),)
        yield PoolOption(pool, bound, price.expected, unsettled, alone, binds)


def _decode_option(
    search: Search, deployment: Deployment, price: Price, short: Mapping[Pool, float]
) -> PoolOption | Loser:
    found = price.batches[search.limits.tpot_s]
    if not found.batch:
        return Loser(
            (deployment,),
            "one request alone takes longer than the TPOT limit"
            if found.binds == "TPOT"
            else "no room for KV cache",
            f"a step of one request takes {found.step_s * 1e3:.3g} ms",
        )
    gained = _tokens_per_step(search.service, deployment)
    bound = least_decode(
        search.demand,
        ranks=deployment.ranks,
        batch=found.batch,
        step_s=found.step_s,
        tokens_per_step=gained,
    )
    room = search.service.machine.profile.gpus
    pool = _with_least(Pool((deployment,), 1, found.max_batch), bound, short, room)
    if isinstance(pool, Loser):
        return pool
    tpot = predicted_tpot(
        search.demand,
        instances=pool.instances,
        ranks=deployment.ranks,
        steps=price.seconds,
        tokens_per_step=gained,
    )
    unsettled = () if price.expected else (expected_price(deployment, search.limits),)
    binds = found.binds if pool.instances == bound else SIMULATED
    return PoolOption(pool, bound, price.expected, unsettled, tpot, binds)


def _tokens_per_step(service: Service, deployment: Deployment) -> float:
    return service.drafting.tokens_per_step if deployment.draft_tokens else 1.0


def _colocated_options(
    search: Search,
    known: Results,
    deployments: tuple[Deployment, Deployment],
    prices: tuple[Price, Price],
    short: Mapping[Pool, float],
) -> Iterator[PoolOption | Loser]:
    """Pools of instances that do both, one for each budget of a pass."""
    prefill, decode = prices
    limits, demand = search.limits, search.demand
    limit = decode.batches[limits.tpot_s].max_batch
    fits = min((*prefill.kv_tokens.values(), decode.kv_tokens.get(limit, 0))) / max(
        demand.context, 1.0
    )
    steps = _over_all_batches(known, deployments[1], decode, limits)
    served = 0
    for tokens, alone in prefill.alone_s.items():
        if alone > limits.ttft_s or tokens <= limit:
            continue
        load = _most_colocated(
            demand,
            ranks=deployments[1].ranks,
            tokens_per_pass=tokens,
            passes=tuple((int(n), seconds) for n, seconds in prefill.seconds.items()),
            steps=tuple(steps.items()),
            largest=min(fits, float(limit)),
            tokens_per_step=_tokens_per_step(search.service, deployments[1]),
            tpot_s=limits.tpot_s,
        )
        if load is None:
            continue
        served += 1
        rate, tpot = load
        bound = max(1, math.ceil(demand.rate / rate - 1e-9))
        room = search.service.machine.profile.gpus
        pool = _with_least(Pool(deployments, 1, limit, tokens), bound, short, room)
        if isinstance(pool, Loser):
            yield pool
            continue
        unsettled = _to_expect(known, limits, deployments)
        binds = "TPOT beside prefill" if pool.instances == bound else SIMULATED
        yield PoolOption(pool, bound, not unsettled, unsettled, tpot, binds)
    if not served:
        yield Loser(
            deployments,
            "colocated: prompts leave no time for decode within the limits",
            f"no budget of {PASSES[0]:,} to {PASSES[-1]:,} tokens keeps both limits",
        )


@lru_cache(maxsize=4096)
def _most_colocated(
    demand: Demand,
    *,
    passes: tuple[tuple[int, Seconds], ...],
    steps: tuple[tuple[float, Seconds], ...],
    **load: Any,
) -> tuple[float, Seconds] | None:
    """`most_colocated` worked out once: a search looks again after every result."""
    return most_colocated(demand, passes=dict(passes), steps=dict(steps), **load)


def _over_all_batches(
    known: Results, deployment: Deployment, price: Price, limits: Limits
) -> Mapping[float, Seconds]:
    """Times of steps of any batch: where those of ranks that differ are known near one batch only,
    those of ideal ranks and what the others take more at it."""
    ideal = known.prices.get(PriceTask(deployment, expected=False))
    if not price.expected or ideal is None:
        return price.seconds
    near = price.batches[limits.tpot_s]
    if not near.batch:
        return price.seconds
    more = near.step_s / interpolated(ideal.seconds, near.batch)
    return {batch: seconds * more for batch, seconds in ideal.seconds.items()}


def _wanted(
    search: Search,
    known: Results,
    options: Mapping[str, tuple[PoolOption, ...]],
    answer: Fleet | None,
    short: Mapping[Pool, float],
) -> Iterator[SearchTask]:
    """What decides which fleet is the smallest, most urgent first."""
    kinds = [
        tuple(options[role] for role in roles)
        for roles in (("prefill", "decode"), ("colocated",))
        if all(options[role] for role in roles)
    ]
    best = math.inf if answer is None else _gpus(answer)
    lists = min(kinds, key=_least_gpus, default=())
    if lists and _least_gpus(lists) < best:
        for of in lists:
            yield from _first_to_settle(of)
        if not any(of[0].unsettled for of in lists):
            yield tuple(of[0].pool for of in lists)
    elif answer is not None and search.check_fewer:
        yield from _one_fewer(answer, known, short)


def _least_gpus(lists: tuple[tuple[PoolOption, ...], ...]) -> int:
    return sum(of[0].pool.gpus for of in lists)


def _first_to_settle(options: tuple[PoolOption, ...]) -> Iterator[SearchTask]:
    """What is still to work out of the options that may be smaller than the first settled one."""
    ahead = itertools.takewhile(lambda option: option.unsettled, options)
    for option in itertools.islice(ahead, AT_A_TIME):
        yield from option.unsettled


def _one_fewer(answer: Fleet, known: Results, short: Mapping[Pool, float]) -> Iterator[SearchTask]:
    """The fleets with one instance fewer of a pool that nothing is known of."""
    for at, pool in enumerate(answer):
        fewer = pool.instances - 1
        if not fewer or short.get(replace(pool, instances=1), 0) >= fewer:
            continue
        task = tuple(replace(p, instances=fewer) if n == at else p for n, p in enumerate(answer))
        if task not in known.runs:
            yield task
