"""One GPU in simulated time: kernels share its SMs and its HBM.

SMs go to kernels whole and are not taken back. A persistent kernel is one CTA for each SM that it
is launched for, and each stays for its share of the work: where fewer SMs are free, the CTAs that
are left run in a further wave. Any other kernel is many short CTAs, which take whatever is free and
refill it, so that its speed goes with its SMs. A kernel that finds no SM waits; one of a higher
priority takes those whose short CTAs end. Who came first is served first. A green context splits
the SMs instead: what has a priority runs on those of the context and on no others, and nothing else
on them.

HBM is one rate. SMs share it max-min fairly, so that kernels do by the SMs that they hold, each up
to what it draws alone, which is its bytes over its time; a kernel goes on as fast as its share of
that. Transfers draw first: they need little, and links set their pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simpy

from hardware_profiles.units import Bytes, BytesPerSecond, Seconds

ROUNDING = 1e-12
"""Of a kernel's time alone: less than this is nothing left."""


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """What a kernel asks of its GPU."""

    seconds: Seconds
    """On `sms` SMs with nothing beside it."""
    sms: int
    """That it fills at once."""
    persistent: bool
    """Whether its CTAs stay, one for each SM."""
    hbm_bytes: Bytes
    cta_seconds: Seconds = 0.0
    """Of one of many short CTAs, after which an SM can go to a kernel of higher priority."""
    enough_sms: int | None = None
    """SMs on which short CTAs are as fast as on all, where HBM binds them; None: no fewer."""
    beside_transfer: float = 1.0
    """Time over that alone while a transfer moves bytes, beyond what SMs and HBM explain."""


@dataclass(slots=True)
class _Wave:
    """CTAs that started together, or the SMs of a kernel that refills them."""

    sms: int
    left_s: Seconds
    """On all SMs that its kernel fills, at full speed of HBM."""
    speed: float = 0.0


@dataclass(slots=True, eq=False)
class Resident:
    """A kernel or transfer that has SMs or waits for them."""

    launch: KernelLaunch | None
    """None of a transfer."""
    pending: int
    """SMs that it still wants, of CTAs that stay."""
    priority: int
    done: simpy.Event = field(repr=False)
    """Of a kernel its end; of a transfer, that it has its SMs."""
    waves: list[_Wave] = field(default_factory=list)
    draws: BytesPerSecond = 0.0
    """Of a transfer, over HBM."""
    freeing: bool = False
    """Whether short CTAs are ending for it."""

    @property
    def held(self) -> int:
        """SMs that it has."""
        return sum(wave.sms for wave in self.waves)

    @property
    def wanted(self) -> int:
        """SMs that it would take now."""
        if self.launch is None or self.launch.persistent:
            return self.pending
        return self.launch.sms - self.held

    @property
    def refills(self) -> bool:
        """Whether it is many short CTAs."""
        return self.launch is not None and not self.launch.persistent


class Gpu:
    """SMs and HBM of one GPU inside a simpy environment.

    Args:
        sms: None where kernels do not contend for SMs: each has those that it asks for.
        hbm: that the fastest kernel reaches; None where kernels do not contend for HBM.
        context_sms: of a green context of what has a priority; 0 without one.
    """

    def __init__(
        self,
        env: simpy.Environment,
        *,
        sms: int | None,
        hbm: BytesPerSecond | None,
        context_sms: int = 0,
    ) -> None:
        self.env = env
        self.sms, self.hbm, self.context_sms = sms, hbm, context_sms
        self.sm_seconds = 0.0
        """SMs times the time in which something held them, so far; so the next three."""
        self.hbm_bytes = 0.0
        self.starved_s: Seconds = 0.0
        """Time in which a kernel lacked SMs that it would have taken, summed over kernels."""
        self.oversubscribed_s: Seconds = 0.0
        """Time in which kernels could have drawn more than HBM gives."""
        self.history: list[tuple[Seconds, int, BytesPerSecond]] = []
        """(from when on, SMs held, bytes/s over HBM), at every change."""
        self._residents: list[Resident] = []
        """Highest priority first, then longest there."""
        self._since = 0.0
        self._busy = 0
        self._rate = 0.0
        self._short = 0
        self._over = False
        self._timer: simpy.Event | None = None

    def run(self, launch: KernelLaunch, *, priority: int = 0) -> simpy.Event:
        """KernelLaunch a kernel; the event fires when it ends."""
        resident = Resident(
            launch, launch.sms if launch.persistent else 0, priority, self.env.event()
        )
        if launch.seconds <= 0:
            resident.done.succeed()
        else:
            self._enter(resident)
        return resident.done

    def hold(self, sms: int, *, priority: int) -> Resident:
        """Take SMs for a transfer until `release`; its event fires when it has all of them."""
        resident = Resident(None, sms, priority, self.env.event())
        if not sms:
            resident.done.succeed()
        self._enter(resident)
        return resident

    def draw(self, transfer: Resident, rate: BytesPerSecond) -> None:
        """Let a transfer move so many bytes/s over HBM from now on."""
        self._pass_time()
        transfer.draws = rate
        self._share()

    def release(self, transfer: Resident) -> None:
        """Free the SMs of a transfer."""
        self._pass_time()
        self._residents.remove(transfer)
        self._share()

    def settle(self) -> None:
        """Count what was used up to now."""
        self._pass_time()

    # --- from one change to the next

    def _enter(self, resident: Resident) -> None:
        self._pass_time()
        place = len(self._residents)
        while place and self._residents[place - 1].priority < resident.priority:
            place -= 1
        self._residents.insert(place, resident)
        self._share()

    def _pass_time(self) -> None:
        """Move all kernels on to now, and end those that are done."""
        passed = self.env.now - self._since
        if not passed:
            return
        self._since = self.env.now
        self.sm_seconds += self._busy * passed
        self.hbm_bytes += self._rate * passed
        self.starved_s += self._short * passed
        self.oversubscribed_s += self._over * passed
        for resident in list(self._residents):
            if resident.launch is None or not resident.waves:
                continue
            least = ROUNDING * resident.launch.seconds + 4 * ROUNDING * self.env.now
            for wave in resident.waves:
                wave.left_s -= passed * wave.speed
            resident.waves = [wave for wave in resident.waves if wave.left_s > least]
            if not resident.waves and not resident.pending:
                self._residents.remove(resident)
                resident.done.succeed()

    def _share(self) -> None:
        """Give out SMs and HBM anew, and set the time of the next end."""
        self._give_sms()
        self._give_hbm()
        first = min(
            (
                wave.left_s / wave.speed
                for resident in self._residents
                if resident.launch is not None
                for wave in resident.waves
                if wave.speed > 0
            ),
            default=None,
        )
        self._timer = None
        if first is not None:
            timer = self.env.timeout(max(first, 0.0))
            self._timer = timer
            timer.callbacks.append(self._due)
        entry = (self.env.now, self._busy, self._rate)
        if self.history and self.history[-1][0] == self.env.now:
            self.history[-1] = entry
        else:
            self.history.append(entry)

    def _due(self, timer: simpy.Event) -> None:
        if timer is self._timer:
            self._pass_time()
            self._share()

    def _give_sms(self) -> None:
        limit, context = self.sms, self.context_sms
        free: list[float] = [np.inf, np.inf] if limit is None else [limit - context, context]
        parts = [self._part(one) for one in self._residents]
        for part, resident in zip(parts, self._residents, strict=True):
            free[part] -= resident.held
        self._short = 0
        for part, resident in zip(parts, self._residents, strict=True):
            wanted = resident.wanted
            given = int(min(wanted, free[part]))
            if given:
                _take(resident, given)
                free[part] -= given
                if resident.launch is None and not resident.pending:
                    resident.done.succeed()
            if given < wanted:
                self._short += 1
                self._free_for(resident)
        self._busy = sum(one.held for one in self._residents)
        assert limit is None or self._busy <= limit, "more SMs in use than the GPU has"

    def _part(self, resident: Resident) -> int:
        """Which SMs it runs on: those of the green context, where there is one, or all others."""
        return int(self.context_sms > 0 and resident.priority > 0)

    def _free_for(self, resident: Resident) -> None:
        """Let SMs of the short CTAs of a kernel of lower priority go to this one as those end."""
        if resident.freeing or self._part(resident):
            return
        for other in self._residents:
            if other.refills and other.held and other.priority < resident.priority:
                assert other.launch is not None
                resident.freeing = True
                later = self.env.timeout(other.launch.cta_seconds)
                later.callbacks.append(partial(self._hand_over, resident, other))
                return

    def _hand_over(self, resident: Resident, victim: Resident, _: simpy.Event) -> None:
        self._pass_time()
        resident.freeing = False
        if victim in self._residents and resident in self._residents:
            victim.waves[0].sms -= min(resident.wanted, victim.held)
        self._share()

    def _give_hbm(self) -> None:
        capacity = self.hbm
        drawn = sum(one.draws for one in self._residents)
        running = [one for one in self._residents if one.launch is not None and one.waves]
        wanted = []
        for resident in running:
            assert resident.launch is not None
            alone = resident.launch.hbm_bytes / resident.launch.seconds
            alone = alone if capacity is None else min(alone, capacity)
            wanted.append(alone * _filled(resident))
        left = None if capacity is None else max(capacity - drawn, 0.0)
        moving = drawn > 0
        held = [one.held for one in running]
        given = wanted if left is None else fair_shares(wanted, left, held)
        self._over = left is not None and sum(wanted) > left * (1 + ROUNDING)
        self._rate = drawn + sum(given)
        for resident, want, have in zip(running, wanted, given, strict=True):
            assert resident.launch is not None
            share = have / want if want else 1.0
            share = share / resident.launch.beside_transfer if moving else share
            for wave in resident.waves:
                wave.speed = share * (_filled(resident) if resident.refills else 1.0)


def _filled(resident: Resident) -> float:
    """Share of its speed alone that the SMs of a kernel allow."""
    launch = resident.launch
    assert launch is not None
    if launch.persistent:
        return resident.held / launch.sms
    return min(1.0, resident.held / (launch.enough_sms or launch.sms))


def _take(resident: Resident, sms: int) -> None:
    launch = resident.launch
    if launch is not None and not launch.persistent and resident.waves:
        resident.waves[0].sms += sms
        return
    resident.waves.append(_Wave(sms, float("inf") if launch is None else launch.seconds))
    if launch is None or launch.persistent:
        resident.pending -= sms


def fair_shares(wanted: Sequence[float], capacity: float, weights: Sequence[float]) -> list[float]:
    """Max-min fair shares of one capacity by weight: who wants less than its part gets it all.

    Args:
        weights: above zero, of those that want anything.
    """
    if sum(wanted) <= capacity:
        return list(wanted)
    shares = [0.0] * len(wanted)
    left, others = capacity, sum(weights)
    some = [place for place in range(len(wanted)) if weights[place]]
    for place in sorted(some, key=lambda place: wanted[place] / weights[place]):
        shares[place] = min(wanted[place], left * weights[place] / others)
        left -= shares[place]
        others -= weights[place]
    return shares
