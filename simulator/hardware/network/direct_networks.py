"""Dragonfly and Slim Fly: switch networks without spines.

Dragonfly as in Kim et al. (ISCA 2008): fully joined groups, groups joined by global cables. Slim
fly as in Besta and Hoefler (SC 2014): the graphs of McKay, Miller and Siran, of diameter two. Both
are routed minimally; detours over a third group or switch (Valiant, UGAL) are not modelled.
"""

import math
from functools import partial
from itertools import count, product

import numpy as np
import numpy.typing as npt

from simulator.hardware.network.switching import (
    Counts,
    Indices,
    Integers,
    Routing,
    SwitchNetwork,
    pick,
)


def count_dragonfly(*, groups: int, group_switches: int, ports: int, global_ports: int) -> Counts:
    """Counts of a dragonfly whose every global port is cabled: Table 3 has 511 x 32, 16 and 16."""
    switches = groups * group_switches
    local = groups * group_switches * (group_switches - 1) // 2
    return Counts(switches * ports, switches, local + switches * global_ports // 2)


def dragonfly_network(
    end_ports: int, *, groups: int, group_switches: int, ports: int, global_ports: int
) -> SwitchNetwork:
    """Dragonfly: all switches of a group joined to each other, groups joined by global ports.

    ``ports`` NICs and ``global_ports`` cables to other groups on each switch. The global ports of
    a group lead to the groups at distance +1, -1, +2, -2, ... around the ring of groups, and again
    from the start while ports are left, so that the wiring is the same seen from every group.
    Routes are minimal (at most one global hop). Raises ValueError where a group cannot reach every
    other one.
    """
    slots = group_switches * global_ports
    if end_ports < 1 or end_ports > groups * group_switches * ports:
        raise ValueError(
            f"{end_ports} end ports do not fit {groups} groups of {group_switches} switches with "
            f"{ports} ports: at most {groups * group_switches * ports}"
        )
    if slots < groups - 1:
        raise ValueError(
            f"{groups} groups need {groups - 1} global ports per group; {group_switches} switches "
            f"with {global_ports} each have {slots}"
        )
    offsets, peers = _global_wiring(groups, slots)
    wired = np.flatnonzero(peers >= 0)
    g, s, t = (a.ravel() for a in np.indices((groups, group_switches, group_switches - 1)))
    t = t + (t >= s)
    local_source, local_target = g * group_switches + s, g * group_switches + t
    locals_ = len(local_source)
    local_reverse = (
        g * group_switches * (group_switches - 1) + t * (group_switches - 1) + s - (s > t)
    )
    ring = np.repeat(np.arange(groups), len(wired))
    slot = np.tile(wired, groups)
    far = (ring + offsets[slot]) % groups
    position = np.full(slots, -1)
    position[wired] = np.arange(len(wired))
    global_source = ring * group_switches + slot // global_ports
    global_target = far * group_switches + peers[slot] // global_ports
    global_reverse = locals_ + far * len(wired) + position[peers[slot]]
    options = [np.flatnonzero(offsets == o) for o in range(groups)]
    widest = max((len(o) for o in options[1:]), default=1)
    table = np.stack([np.resize(o, widest) if len(o) else np.zeros(widest) for o in options])
    slots_to = table.astype(np.int64)
    options_to = np.array([max(len(o), 1) for o in options])
    first = 2 * end_ports
    global_start = first + locals_

    def local(group: Integers, start: Integers, end: Integers) -> Integers:
        link = first + (group * group_switches + start) * (group_switches - 1) + end - (end > start)
        return np.where(start == end, -1, link)

    def route(
        source: Integers, destination: Integers, choice: Integers, routing: Routing
    ) -> Indices:
        from_switch, to_switch = source // ports, destination // ports
        from_group, to_group = from_switch // group_switches, to_switch // group_switches
        distance = (to_group - from_group) % groups
        crosses = distance > 0
        way = pick(
            routing,
            options_to[distance],
            source=source,
            destination=destination,
            choice=choice,
            salt=1,
        )
        slot = slots_to[distance, way]
        leave = np.where(crosses, slot // global_ports, to_switch % group_switches)
        arrive = np.where(crosses, peers[slot] // global_ports, to_switch % group_switches)
        path = np.full((len(source), 5), -1, dtype=np.int32)
        path[:, 0] = source
        path[:, 1] = local(from_group, from_switch % group_switches, leave)
        path[:, 2] = np.where(crosses, global_start + from_group * len(wired) + position[slot], -1)
        path[:, 3] = np.where(crosses, local(to_group, arrive, to_switch % group_switches), -1)
        path[:, 4] = end_ports + destination
        return path

    names = tuple(
        f"group{i // group_switches}/switch{i % group_switches}"
        for i in range(groups * group_switches)
    )
    source = np.concatenate([local_source, global_source]).astype(np.int32)
    target = np.concatenate([local_target, global_target]).astype(np.int32)

    def link_name(link: int) -> str:
        if link < locals_:
            return f"{names[source[link]]}/to_switch{target[link] % group_switches}"
        return f"{names[source[link]]}/global{slot[link - locals_] % global_ports}"

    return SwitchNetwork(
        family="dragonfly",
        end_ports=end_ports,
        switches=groups * group_switches,
        port_switch=(np.arange(end_ports) // ports).astype(np.int32),
        link_source=source,
        link_target=target,
        link_reverse=np.concatenate([local_reverse, global_reverse]).astype(np.int32),
        switch_names=names,
        link_names=link_name,
        router=route,
        hops=5,
    )


def _global_wiring(groups: int, slots: int) -> tuple[Integers, Integers]:
    """Distance around the ring of groups and far slot of each global port; -1 stays free."""
    around: list[tuple[int, int]] = []  # (distance, position of the returning slot, relative)
    for distance in range(1, groups // 2 + 1):
        if 2 * distance == groups:
            around.append((distance, 0))
        else:
            around += [(distance, 1), (groups - distance, -1)]
    offsets = np.zeros(slots, dtype=np.int64)
    peers = np.full(slots, -1, dtype=np.int64)
    for slot in range(slots if around else 0):
        distance, partner = around[slot % len(around)]
        if 0 <= slot + partner < slots:
            offsets[slot], peers[slot] = distance, slot + partner
    return offsets, peers


def count_slim_fly(q: int) -> Counts:
    """Counts of a slim fly by formula: 2q² switches of network radix (3q - d)/2, q = 4w + d.

    The formula also counts orders q that are no prime power (Table 3 uses q = 28), for which no
    such graph exists; ``slim_fly_network`` refuses those. Half the network radix is the number of
    NICs.
    """
    delta = _slim_fly_delta(q)
    radix = (3 * q - delta) // 2
    return Counts(2 * q * q * -(-radix // 2), 2 * q * q, q * q * radix)


def slim_fly_network(end_ports: int, *, q: int) -> SwitchNetwork:
    """Slim fly of order ``q``, a prime power: any two switches at most two hops apart.

    Raises ValueError where q is no prime power, or for more end ports than 2q² switches take.
    """
    delta = _slim_fly_delta(q)
    plus, times, powers = _finite_field(q)
    negative = np.argmin(plus, axis=1)  # plus[x, negative[x]] == 0, the smallest element
    near, far = _generator_sets(q, delta)
    radix = (3 * q - delta) // 2
    ports = -(-radix // 2)
    if not 1 <= end_ports <= 2 * q * q * ports:
        raise ValueError(
            f"{end_ports} end ports do not fit a slim fly of order {q}: at most {2 * q * q * ports}"
        )
    switches = 2 * q * q
    neighbours = np.empty((switches, radix), dtype=np.int64)
    x, y = (a.ravel() for a in np.indices((q, q)))
    for side, exponents in enumerate((near, far)):
        rows = side * q * q + x * q + y
        for column, exponent in enumerate(exponents):
            neighbours[rows, column] = side * q * q + x * q + plus[y, powers[exponent]]
    for m in range(q):
        # (0, x, y) meets (1, m, c) where y = m x + c.
        c = plus[y, negative[times[m, x]]]
        neighbours[x * q + y, len(near) + m] = q * q + m * q + c
        c_side = y
        neighbours[q * q + x * q + c_side, len(far) + m] = m * q + plus[times[x, m], c_side]
    neighbours.sort(axis=1)
    source = np.repeat(np.arange(switches), radix)
    target = neighbours.ravel()
    position = np.full((switches, switches), -1, dtype=np.int32)
    position[source, target] = np.arange(len(source))
    # First and last common neighbour of each pair: the two ways between switches two hops apart.
    middle = np.zeros((2, switches, switches), dtype=np.int16)
    for column in range(radix):
        via = neighbours[:, column]
        middle[1, np.arange(switches)[:, None], neighbours[via]] = via[:, None]
        via = neighbours[:, radix - 1 - column]
        middle[0, np.arange(switches)[:, None], neighbours[via]] = via[:, None]
    names = tuple(f"side{i // (q * q)}/switch{i // q % q}_{i % q}" for i in range(switches))

    def link_name(link: int) -> str:
        return f"{names[source[link]]}/to_{names[target[link]].replace('/', '_')}"

    return SwitchNetwork(
        family="slim_fly",
        end_ports=end_ports,
        switches=switches,
        port_switch=(np.arange(end_ports) // ports).astype(np.int32),
        link_source=source.astype(np.int32),
        link_target=target.astype(np.int32),
        link_reverse=position[target, source],
        switch_names=names,
        link_names=link_name,
        router=partial(
            _route_slim_fly, end_ports=end_ports, ports=ports, position=position, middle=middle
        ),
        hops=4,
    )


def _route_slim_fly(
    source: Integers,
    destination: Integers,
    choice: Integers,
    routing: Routing,
    *,
    end_ports: int,
    ports: int,
    position: Indices,
    middle: npt.NDArray[np.int16],
) -> Indices:
    """Route packets.

    Args:
        position: [switches, switches], directed link between two, -1 where there is none.
        middle: [2, switches, switches], first and last common neighbour.
    """
    start, end = source // ports, destination // ports
    way = pick(routing, 2, source=source, destination=destination, choice=choice, salt=1)
    direct = position[start, end]
    via = middle[way, start, end].astype(np.int64)
    detours = (start != end) & (direct < 0)
    path = np.full((len(source), 4), -1, dtype=np.int32)
    path[:, 0] = source
    path[:, 1] = np.where(detours, position[start, via], direct)
    path[:, 2] = np.where(detours, position[via, end], -1)
    path[:, 1:3] += np.where(path[:, 1:3] >= 0, 2 * end_ports, 0).astype(np.int32)
    path[:, 3] = end_ports + destination
    return path


def _slim_fly_delta(q: int) -> int:
    delta = {0: 0, 1: 1, 3: -1}.get(q % 4)
    if q < 3 or delta is None:
        raise ValueError(f"slim fly order {q} must be at least 3 and 4w - 1, 4w or 4w + 1")
    return delta


def _generator_sets(q: int, delta: int) -> tuple[list[int], list[int]]:
    """Exponents of the primitive element that join switches of one column, on either side."""
    if delta == 1:
        return list(range(0, q - 2, 2)), list(range(1, q - 1, 2))
    if delta == 0:
        return list(range(0, q - 1, 2)), [e % (q - 1) for e in range(1, q, 2)]
    w = (q + 1) // 4
    near = [*range(0, 2 * w - 1, 2), *range(2 * w - 1, 4 * w - 2, 2)]
    far = [*range(1, 2 * w, 2), *range(2 * w, 4 * w - 1, 2)]
    return near, [e % (q - 1) for e in far]


def prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, n) with q = p**n and p prime, or None."""
    prime = next((p for p in range(2, math.isqrt(q) + 1) if q % p == 0), q)
    exponent = round(math.log(q, prime)) if q > 1 else 0
    return (prime, exponent) if q > 1 and prime**exponent == q else None


def _finite_field(q: int) -> tuple[Integers, Integers, Integers]:
    """Tables of addition [q, q], multiplication [q, q] and powers of a primitive element [q - 1].

    Elements are numbered by the digits of their polynomial in base p; 0 is zero. The modulus is
    the first monic polynomial under which some element has every other non-zero one as a power.
    """
    factors = prime_power(q)
    if factors is None:
        raise ValueError(
            f"slim fly order {q} is no prime power: the graph does not exist, only its counts "
            "follow from the formula; try 5, 7, 9, 11, 13, 25, 27 or 29"
        )
    p, n = factors
    digits = np.array(list(product(range(p), repeat=n)))[:, ::-1]  # [q, n], lowest power first
    weights = p ** np.arange(n)
    plus = ((digits[:, None] + digits[None]) % p) @ weights
    for modulus in digits[1:]:  # x^n = -(modulus): every choice of the lower coefficients
        times = _multiplication(digits, (-modulus) % p, p)
        for element in range(1, q):
            powers = [1]
            while (following := int(times[powers[-1], element])) not in (0, 1):
                powers.append(following)
                if len(powers) >= q:
                    break
            if len(powers) == q - 1 and len(set(powers)) == q - 1:
                return plus, times, np.array(powers)
    raise AssertionError(f"no primitive element of order {q} found")


def _multiplication(digits: Integers, reduction: Integers, p: int) -> Integers:
    """Multiplication table [q, q] of polynomials with x^n = ``reduction``."""
    q, n = digits.shape
    shifted = np.broadcast_to(digits[None], (q, q, n)).copy()  # right factor times x^i
    total = np.zeros((q, q, n), dtype=np.int64)
    for power in count():
        total = (total + digits[:, power][:, None, None] * shifted) % p
        if power == n - 1:
            return np.asarray(total @ (p ** np.arange(n)))
        carry = shifted[..., -1:].copy()
        shifted = np.concatenate([np.zeros((q, q, 1), dtype=np.int64), shifted[..., :-1]], axis=2)
        shifted = (shifted + carry * reduction) % p
    raise AssertionError("unreachable")
