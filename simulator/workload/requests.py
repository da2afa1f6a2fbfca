"""Generate or read the requests of a service, in order of arrival.

Recorded traces (Azure LLM inference CSV, Mooncake JSONL with block hashes, BurstGPT CSV) and
synthetic processes (Poisson, gamma, with a load by hour of day, with sessions that repeat their
prompts). All of them are streams: memory does not grow with the length of a trace. Times are
seconds from the first request of the source.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import unit_factor
from simulator.scenario.fleet import (
    HASHED_BLOCK_TOKENS,
    Distribution,
    RequestSource,
    Sessions,
    SyntheticRequests,
    TraceFormat,
)

_CHUNK = 4096
_MOST_TOKENS = 2**53
"""Of one request; whole numbers beyond it have no exact floating-point value."""


@dataclass(slots=True)
class Request:
    """One prompt and the answer it asks for."""

    index: int
    """0, 1, 2 ... in order of arrival."""
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    """At least 1: the first comes out of the prefill."""
    priority: int = 0
    """0 is the most urgent."""
    block_hashes: tuple[int, ...] = ()
    """One id for each started block of the prompt; equal ids mean equal prompts up to there."""
    cached_tokens: int = 0
    """Tokens said to lie in the prefix cache's slowest tier, for requests without hashes."""


@dataclass(slots=True)
class ReadCounts:
    """What became of the lines of a trace so far."""

    read: int = 0
    malformed: int = 0
    """Skipped because they could not be read."""
    failed: int = 0
    """Skipped because the recorded service gave no answer (BurstGPT: 0 response tokens)."""


class _Malformed(ValueError):
    """A line that cannot be read; the message says why."""


class _Failed(Exception):
    """A line that tells of a request without an answer."""


def generate_requests(
    source: RequestSource, generator: np.random.Generator, *, counts: ReadCounts
) -> Iterator[Request]:
    """Yield the requests of a source in order of arrival.

    For closed_loop sources arrival_s is 0: the service decides when each one is sent.
    ``counts`` is brought up to date as lines are read.

    Raises:
        ValueError: a file that is missing or empty, a window without requests, a malformed line
            (with its number), or a trace whose time runs backwards.
    """
    if source.file is not None:
        assert source.format is not None  # the job's validator asks for it
        stream = read_trace(
            Path(source.file), source.format, skip_malformed=source.malformed == "skip",
            counts=counts,
        )  # fmt: skip
    else:
        assert source.synthetic is not None  # the job's validator asks for it
        stream = synthesize(source.synthetic, generator)
    start = 0.0
    if source.window is not None:
        start = source.window.start
        end = source.window.end
        stream = itertools.takewhile(lambda request: request.arrival_s < end, stream)
        stream = itertools.dropwhile(lambda request: request.arrival_s < start, stream)
    if source.limit is not None:
        stream = itertools.islice(stream, source.limit)
    index = -1
    for index, request in enumerate(stream):
        request.index = index
        request.arrival_s = (request.arrival_s - start) / source.rate_scale
        yield request
    if index < 0:
        assert source.window is not None  # an empty trace is an error of its own
        raise ValueError(
            f"requests.window: no request arrives from {start:g} s to {source.window.end:g} s; "
            "allowed: a window that holds some"
        )


def expected_requests(source: RequestSource) -> int | None:
    """About as many requests as a source gives; None where nobody knows without reading it."""
    whole = None
    if source.window is None and source.file is not None:
        path = Path(source.file)
        try:
            if not path.is_file():
                return None  # Reading it says what is wrong.
            with path.open("rb") as file:
                lines = sum(chunk.count(b"\n") for chunk in iter(partial(file.read, CHUNK), b""))
        except OSError:
            return None
        whole = max(lines, 1)
    elif source.window is None and source.synthetic is not None:
        whole = source.synthetic.count if source.synthetic.sessions is None else None
    known = [count for count in (whole, source.limit) if count is not None]
    return min(known, default=None)


CHUNK = 2**20
LONGEST_LINE = 2**24
"""Characters of a trace that are read as one line, far beyond any prompt with its hashes."""


def read_trace(
    path: Path, trace_format: TraceFormat, *, skip_malformed: bool, counts: ReadCounts
) -> Iterator[Request]:
    """Yield the requests of a recorded trace; arrivals count from its first request."""
    first: float | None = None
    last = -math.inf
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"requests.file: {path}: cannot be read: not a file")
        # newline="" as the csv module asks for; a byte order mark is no part of the first line, and
        # bytes that cannot be decoded make their own line malformed.
        file = path.open(encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise ValueError(f"requests.file: {path}: cannot be read: {error.strerror}") from None
    with file:
        lines = enumerate(iter(partial(file.readline, LONGEST_LINE), ""), start=1)
        parse = _parser(trace_format, path, lines)
        for number, line in lines:
            if not line.strip():
                continue
            try:
                request = parse(line)
                if request.arrival_s < last:
                    raise _Malformed("its time is earlier than that of the line before")
            except _Failed:
                counts.failed += 1
                continue
            except _Malformed as error:
                if skip_malformed:
                    counts.malformed += 1
                    continue
                raise ValueError(
                    f"requests.file: {path}: line {number}: {error}; "
                    "allowed: a line of the "
                    f"{trace_format} format, or requests.malformed=skip"
                ) from None
            last = request.arrival_s
            first = last if first is None else first
            counts.read += 1
            request.arrival_s -= first
            yield request
    if counts.read == 0:
        raise ValueError(f"requests.file: {path}: holds no request of the {trace_format} format")


def _parser(
    trace_format: TraceFormat, path: Path, lines: Iterator[tuple[int, str]]
) -> Callable[[str], Request]:
    """Return the function that reads a line, after the header of formats that have one."""
    if trace_format == "mooncake":
        return _parse_mooncake
    number, header = next(lines, (1, ""))
    names = [name.strip() for name in header.split(",")]
    wanted = {
        "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    }[trace_format]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"requests.file: {path}: line {number}: the header lacks {missing[0]!r}; "
            f"allowed for {trace_format}: {', '.join(wanted)}"
        )
    columns = [names.index(name) for name in wanted]
    read_time = _azure_seconds if trace_format == "azure" else _seconds
    no_answer_allowed = trace_format == "burstgpt"

    def parse(line: str) -> Request:
        try:
            fields = next(csv.reader((line,)))
        except csv.Error as error:
            raise _Malformed(f"not CSV: {error}") from None
        if len(fields) != len(names):
            raise _Malformed(f"{len(fields)} fields where the header has {len(names)}")
        time, prompt, output = (fields[column].strip() for column in columns)
        if no_answer_allowed and output == "0":
            raise _Failed
        return Request(
            index=0,
            arrival_s=read_time(time),
            prompt_tokens=_tokens(prompt, "prompt"),
            output_tokens=_tokens(output, "output"),
        )

    return parse


def _parse_mooncake(line: str) -> Request:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise _Malformed(f"not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise _Malformed("its JSON has a number too long or lists too deep to read") from None
    if not isinstance(fields, dict):
        raise _Malformed("not a JSON object")
    for name in ("timestamp", "input_length", "output_length"):
        if name not in fields:
            raise _Malformed(f"{name!r} is missing")
    prompt = _tokens(fields["input_length"], "input_length")
    # A recorder that hashes nothing leaves them out: such a prompt shares no prefix.
    hashes = fields.get("hash_ids")
    if hashes is None:
        hashes = []
    elif not isinstance(hashes, list) or not all(type(h) is int for h in hashes):
        raise _Malformed("hash_ids is not a list of whole numbers")
    elif len(hashes) != -(-prompt // HASHED_BLOCK_TOKENS):
        raise _Malformed(
            f"{len(hashes)} hash_ids for {prompt} tokens in blocks of {HASHED_BLOCK_TOKENS}"
        )
    return Request(
        index=0,
        arrival_s=_seconds(fields["timestamp"]) * unit_factor("ms", "time"),
        prompt_tokens=prompt,
        output_tokens=_tokens(fields["output_length"], "output_length"),
        block_hashes=tuple(hashes),
    )


def _azure_seconds(text: str) -> float:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise _Malformed(f"{text!r} is not a date and time") from None
    # Without a zone it is UTC, not the zone of the machine that reads it.
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _seconds(value: object) -> float:
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise _Malformed(f"{_shown(value)} is not a time") from None
    if not math.isfinite(seconds) or isinstance(value, bool):
        raise _Malformed(f"{_shown(value)} is not a time")
    return seconds


def _tokens(value: object, name: str) -> int:
    try:
        tokens = int(value) if isinstance(value, str) else value
    except ValueError:
        raise _Malformed(f"{name} {_shown(value)} is not a whole number") from None
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise _Malformed(f"{name} {_shown(value)} is not a whole number of 1 or more")
    if tokens > _MOST_TOKENS:
        raise _Malformed(f"{name} {_shown(value)} is more than {_MOST_TOKENS}")
    return tokens


def _shown(value: object) -> str:
    """A value of a trace, cut where it would fill the screen."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def synthesize(spec: SyntheticRequests, generator: np.random.Generator) -> Iterator[Request]:
    """Yield synthetic requests in order of arrival; equal generators give equal requests."""
    # Streams of their own, so that changing one distribution leaves the other draws alone.
    arrivals, prompts, outputs, classes, turns = generator.spawn(5)
    single = _single_turns(spec, arrivals, prompts, outputs, classes)
    if spec.sessions is None:
        return single
    return _with_turns(single, spec.sessions, spec.output_tokens, turns)


def _single_turns(
    spec: SyntheticRequests,
    arrivals: np.random.Generator,
    prompts: np.random.Generator,
    outputs: np.random.Generator,
    classes: np.random.Generator,
) -> Iterator[Request]:
    weights = np.array(spec.priority_shares) / sum(spec.priority_shares)
    clock = 0.0
    for begin in range(0, spec.count, _CHUNK):
        size = min(_CHUNK, spec.count - begin)
        if spec.arrivals == "closed_loop":
            times = np.zeros(size)
        else:
            assert spec.rate is not None  # the job's validator asks for it
            shape = 1.0 if spec.arrivals == "poisson" else 1.0 / float(spec.cv or 1.0) ** 2
            # In units of the mean time between arrivals; mapped to seconds below.
            ticks = clock + np.cumsum(arrivals.gamma(shape, 1.0 / shape, size))
            clock = float(ticks[-1])
            times = _seconds_of_day_load(ticks / spec.rate, spec.hourly_load)
        prompt = sample_token_counts(spec.prompt_tokens, prompts, size)
        output = sample_token_counts(spec.output_tokens, outputs, size)
        cached = np.floor(prompt * spec.cached_fraction).astype(np.int64)
        if len(weights) == 1:
            priority = [0] * size
        else:
            priority = classes.choice(len(weights), size=size, p=weights).tolist()
        for row in zip(
            times.tolist(), prompt.tolist(), output.tolist(), priority, cached.tolist(), strict=True
        ):
            time, prompt_tokens, output_tokens, urgency, cached_tokens = row
            yield Request(
                0, time, prompt_tokens, output_tokens, urgency, cached_tokens=cached_tokens
            )


def _seconds_of_day_load(
    mean_times: NDArray[np.float64], hourly_load: tuple[float, ...] | None
) -> NDArray[np.float64]:
    """Stretch the arrivals of a constant rate to the load of each hour, exactly.

    The expected arrivals up to a time are piecewise linear in it; its inverse maps the arrivals
    of a unit process to those of the varying one (inversion of the cumulative intensity).
    """
    if hourly_load is None:
        return mean_times
    hour = unit_factor("h", "time")
    load = np.array(hourly_load) / np.mean(hourly_load)
    day = len(load) * hour
    expected = np.concatenate(([0.0], np.cumsum(load) * hour))
    days, rest = np.divmod(mean_times, day)
    stretched: NDArray[np.float64] = days * day + np.interp(
        rest, expected, np.arange(len(load) + 1) * hour
    )
    return stretched


def sample_token_counts(
    distribution: Distribution, generator: np.random.Generator, size: int
) -> NDArray[np.int64]:
    """Draw token counts: [size], whole numbers of at least 1."""
    match distribution.kind:
        case "constant":
            values = np.full(size, float(distribution.mean or 0.0))
        case "exponential":
            values = generator.exponential(float(distribution.mean or 0.0), size)
        case "lognormal":
            # mean m and cv c of the lognormal: sigma^2 = ln(1 + c^2), mu = ln m - sigma^2 / 2.
            variance = math.log1p(float(distribution.cv or 0.0) ** 2)
            location = math.log(float(distribution.mean or 1.0)) - variance / 2
            values = generator.lognormal(location, math.sqrt(variance), size)
        case "quantiles":
            values = _inverse(_curve(distribution.quantiles or {}), generator.random(size))
    # Cut before the conversion: beyond its range a whole number would wrap round.
    upper = min(distribution.maximum or _MOST_TOKENS, _MOST_TOKENS)
    tokens: NDArray[np.int64] = np.clip(np.rint(values), 1, upper).astype(np.int64)
    return tokens


_Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Rising probabilities, and the value at each."""


def _curve(quantiles: Mapping[float, float]) -> _Curve:
    probabilities = sorted(quantiles)
    return np.array(probabilities), np.array([quantiles[p] for p in probabilities], dtype=float)


def _inverse(curve: _Curve, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.interp(uniform, *curve)
    return np.asarray(values, dtype=np.float64)


def _with_turns(
    first_turns: Iterator[Request],
    sessions: Sessions,
    output_tokens: Distribution,
    generator: np.random.Generator,
) -> Iterator[Request]:
    """Merge further turns into a stream of first turns, in order of arrival.

    A turn repeats the prompt of the one before, but for its end, and adds to it. Blocks that are
    repeated whole keep their ids, the others get fresh ones. Only open sessions are held.
    """
    fresh = itertools.count(sessions.shared_blocks)
    shared = tuple(range(sessions.shared_blocks))
    later: list[tuple[float, int, int, Request]] = []
    ties = itertools.count()
    gaps, replacing, adding = map(
        _curve,
        (
            sessions.turn_gap_quantiles,
            sessions.replaced_tokens_quantiles,
            sessions.added_tokens_quantiles,
        ),
    )

    def schedule_next(request: Request, turn: int) -> None:
        chances = sessions.continue_probability
        if generator.random() >= chances[min(turn, len(chances) - 1)]:
            return
        gap = _inverse(gaps, generator.random(1))[0]
        share = generator.random(1)
        replaced = round(_inverse(replacing, share)[0])
        added = round(_inverse(adding, share)[0])
        kept = max(request.prompt_tokens - replaced, 0)
        full = kept // HASHED_BLOCK_TOKENS
        prompt = max(kept + added, 1)
        following = replace(
            request,
            arrival_s=request.arrival_s + float(gap),
            prompt_tokens=prompt,
            output_tokens=int(sample_token_counts(output_tokens, generator, 1)[0]),
            block_hashes=_extend(request.block_hashes[:full], prompt, fresh),
        )
        heapq.heappush(later, (following.arrival_s, next(ties), turn + 1, following))

    for first in first_turns:
        while later and later[0][0] <= first.arrival_s:
            _, _, turn, request = heapq.heappop(later)
            yield request
            schedule_next(request, turn)
        first.block_hashes = _extend(
            shared[: first.prompt_tokens // HASHED_BLOCK_TOKENS], first.prompt_tokens, fresh
        )
        yield first
        schedule_next(first, 0)
    while later:
        _, _, turn, request = heapq.heappop(later)
        yield request
        schedule_next(request, turn)


def _extend(kept: tuple[int, ...], prompt_tokens: int, fresh: Iterator[int]) -> tuple[int, ...]:
    blocks = -(-prompt_tokens // HASHED_BLOCK_TOKENS)
    return kept + tuple(itertools.islice(fresh, blocks - len(kept)))


def ideal_hit_rate(requests: Iterator[Request]) -> float:
    """Share of blocks that a prefix cache without limits, filled on arrival, would hold already."""
    seen: set[int] = set()
    hits = blocks = 0
    for request in requests:
        for block in request.block_hashes:
            if block not in seen:
                break
            hits += 1
        blocks += len(request.block_hashes)
        seen.update(request.block_hashes)
    return hits / blocks if blocks else 0.0
