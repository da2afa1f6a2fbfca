"""Request streams: recorded formats, their errors, synthetic processes and their statistics."""

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.scenario.fleet import Distribution, RequestSource, SyntheticRequests
from simulator.workload import requests
from simulator.workload.requests import (
    ReadCounts,
    Request,
    expected_requests,
    generate_requests,
    ideal_hit_rate,
    sample_token_counts,
    synthesize,
)

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "requests"

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.9799600,3180,8
2023-11-16 18:18:03.9799600,110,27
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""


def mooncake_line(time_ms: int, prompt: int, hashes: list[int]) -> str:
    return json.dumps(
        {"timestamp": time_ms, "input_length": prompt, "output_length": 7, "hash_ids": hashes}
    )


def read(path: Path, trace_format: str, **changes: Any) -> tuple[list[Request], ReadCounts]:
    source = RequestSource.model_validate({"file": str(path), "format": trace_format, **changes})
    counts = ReadCounts()
    return list(generate_requests(source, np.random.default_rng(0), counts=counts)), counts


def test_azure_csv_gives_times_from_its_first_request(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    requests, counts = read(path, "azure")
    assert [
        (r.index, round(r.arrival_s, 6), r.prompt_tokens, r.output_tokens) for r in requests
    ] == [
        (0, 0.0, 4808, 10),
        (1, 2.0, 3180, 8),
        (2, 60.0, 110, 27),
    ]
    assert counts.read == 3


def test_mooncake_jsonl_keeps_its_block_hashes(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(mooncake_line(0, 1000, [0, 1]) + "\n" + mooncake_line(1500, 512, [0]) + "\n")
    requests, _ = read(path, "mooncake")
    assert [(r.arrival_s, r.block_hashes) for r in requests] == [(0.0, (0, 1)), (1.5, (0,))]
    assert ideal_hit_rate(iter(requests)) == pytest.approx(1 / 3)


def test_mooncake_prompts_without_block_hashes_share_no_prefix(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 250, "input_length": 700, "output_length": 5},
        {"timestamp": 750, "input_length": 700, "output_length": 5, "hash_ids": None},
        {"timestamp": 1250, "input_length": 700, "output_length": 5, "hash_ids": [3, 4]},
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    requests, counts = read(path, "mooncake")
    assert [(r.arrival_s, r.prompt_tokens, r.block_hashes) for r in requests] == [
        (0.0, 700, ()),
        (0.5, 700, ()),
        (1.0, 700, (3, 4)),
    ]
    assert counts.malformed == 0
    assert ideal_hit_rate(iter(requests[:2])) == 0.0


def test_burstgpt_csv_counts_requests_without_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURSTGPT)
    requests, counts = read(path, "burstgpt")
    assert [(r.arrival_s, r.prompt_tokens) for r in requests] == [(0.0, 472), (113.0, 417)]
    assert (counts.read, counts.failed) == (2, 1)


@pytest.mark.parametrize(
    ("trace_format", "line", "reason"),
    [
        ("azure", "yesterday,10,10", "'yesterday' is not a date and time"),
        ("azure", "2023-11-16 18:19:03,-3,10", "prompt '-3'"),
        ("azure", "2023-11-16 18:19:03,ten,10", "prompt 'ten' is not a whole number"),
        ("azure", "2023-11-16 18:19:03,10,0", "output '0'"),
        ("azure", "2023-11-16 18:19:03,10", "2 fields where the header has 3"),
        ("azure", "2023-11-16 18:00:00,10,10", "earlier than that of the line before"),
        ("azure", f"2023-11-16 18:19:03,1{'0' * 400},10", "prompt '1000"),
        ("azure", f"2023-11-16 18:19:03,{'1' * 140_000},10", "not CSV: field larger"),
        ("burstgpt", "nan,m,1,1,2,l", "'nan' is not a time"),
        ("mooncake", "{", "not JSON"),
        ("mooncake", "[]", "not a JSON object"),
        ("mooncake", '{"timestamp": 0}', "'input_length' is missing"),
        ("mooncake", mooncake_line(9, 600, [1]), "1 hash_ids for 600 tokens"),
        ("mooncake", mooncake_line(9, 512, [True]), "not a list of whole numbers"),
        ("mooncake", mooncake_line(True, 512, [1]), "True is not a time"),
        ("mooncake", mooncake_line(10**400, 512, [1]), "000 ... is not a time"),
        ("mooncake", f'{{"timestamp": {"1" * 5000}}}', "a number too long"),
        ("mooncake", "[" * 100_000, "lists too deep"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_an_error_with_its_number_or_skipped_and_counted(
    tmp_path: Path, trace_format: str, line: str, reason: str
) -> None:
    good = {"azure": AZURE, "burstgpt": BURSTGPT, "mooncake": mooncake_line(0, 512, [0]) + "\n"}
    path = tmp_path / "trace"
    path.write_text(good[trace_format] + line + "\n")
    number = len(good[trace_format].splitlines()) + 1
    with pytest.raises(ValueError, match=f"line {number}: ") as error:
        read(path, trace_format)
    assert reason in str(error.value)
    _, counts = read(path, trace_format, malformed="skip")
    assert counts.malformed == 1


def test_a_missing_file_a_wrong_header_and_an_empty_trace_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read(tmp_path / "none.csv", "azure")
    path = tmp_path / "trace.csv"
    path.write_text(BURSTGPT)
    with pytest.raises(ValueError, match="the header lacks 'TIMESTAMP'"):
        read(path, "azure")
    path.write_text(AZURE.splitlines()[0])
    with pytest.raises(ValueError, match="holds no request"):
        read(path, "azure")


def test_what_has_no_end_and_a_line_without_one_are_read_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = RequestSource.model_validate({"file": "/dev/zero", "format": "azure"})
    assert expected_requests(endless) is None
    with pytest.raises(ValueError, match="/dev/zero: cannot be read: not a file"):
        read(Path("/dev/zero"), "azure")
    monkeypatch.setattr(requests, "LONGEST_LINE", 100)
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": ' + "1" * 300)
    with pytest.raises(ValueError, match="line 1: not JSON: Expecting ',' delimiter"):
        read(path, "mooncake")


def test_a_window_a_rate_and_a_limit_choose_from_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    window = {"start": "1 s", "end": "1 h"}
    requests, _ = read(path, "azure", window=window, rate_scale=2.0)
    assert [round(r.arrival_s, 6) for r in requests] == [0.5, 29.5]
    assert [r.index for r in requests] == [0, 1]
    assert len(read(path, "azure", limit=1)[0]) == 1


@pytest.mark.parametrize("trace_format", ["azure", "burstgpt", "mooncake"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path, trace_format: str) -> None:
    good = {"azure": AZURE, "burstgpt": BURSTGPT, "mooncake": mooncake_line(0, 512, [0]) + "\n"}
    path = tmp_path / "trace"
    path.write_text(good[trace_format])
    plain, _ = read(path, trace_format)
    path.write_text(good[trace_format], encoding="utf-8-sig")
    marked, _ = read(path, trace_format)
    assert marked == plain


def test_a_window_without_requests_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    with pytest.raises(ValueError, match=r"requests\.window: no request arrives from 36000 s"):
        read(path, "azure", window={"start": "10 h", "end": "11 h"})


def synthetic(**changes: Any) -> SyntheticRequests:
    return SyntheticRequests.model_validate(
        {
            "arrivals": "poisson",
            "rate": "10 Hz",
            "count": 20_000,
            "prompt_tokens": {"kind": "constant", "mean": 100},
            "output_tokens": {"kind": "constant", "mean": 10},
            **changes,
        }
    )


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_arrivals_have_the_asked_rate_and_variation(cv: float) -> None:
    spec = synthetic(arrivals="gamma", cv=cv)
    times = np.array([r.arrival_s for r in synthesize(spec, np.random.default_rng(0))])
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.1, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_poisson_arrivals_are_gamma_arrivals_of_variation_one() -> None:
    spec = synthetic()
    times = np.array([r.arrival_s for r in synthesize(spec, np.random.default_rng(0))])
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.05)


def test_the_load_of_the_hours_shapes_arrivals_and_keeps_the_mean_rate() -> None:
    spec = synthetic(rate="1 Hz", count=2 * 86_400, hourly_load=[1.0] * 12 + [3.0] * 12)
    times = np.array([r.arrival_s for r in synthesize(spec, np.random.default_rng(0))])
    hours = np.bincount((times // 3600 % 24).astype(int), minlength=24)
    assert hours[12:].sum() / hours[:12].sum() == pytest.approx(3.0, rel=0.03)
    assert times[-1] == pytest.approx(2 * 86_400, rel=0.02)


@pytest.mark.parametrize(
    ("distribution", "mean", "deviation"),
    [
        ({"kind": "constant", "mean": 50}, 50, 0),
        ({"kind": "exponential", "mean": 500}, 500, 500),
        ({"kind": "lognormal", "mean": 1000, "cv": 1.5}, 1000, 1500),
        ({"kind": "quantiles", "quantiles": {0: 100, 1: 300}}, 200, 200 / 12**0.5),
    ],
)
def test_lengths_have_the_asked_moments(
    distribution: dict[str, Any], mean: float, deviation: float
) -> None:
    values = sample_token_counts(
        Distribution.model_validate(distribution), np.random.default_rng(0), 200_000
    )
    assert values.mean() == pytest.approx(mean, rel=0.02)
    assert values.std() == pytest.approx(deviation, rel=0.05)
    assert values.min() >= 1


def test_longer_samples_are_cut_to_the_maximum() -> None:
    distribution = Distribution.model_validate({"kind": "exponential", "mean": 500, "maximum": 600})
    assert sample_token_counts(distribution, np.random.default_rng(0), 1000).max() == 600


def test_lengths_beyond_whole_numbers_are_long_not_short() -> None:
    distribution = Distribution.model_validate({"kind": "constant", "mean": 1e300})
    assert sample_token_counts(distribution, np.random.default_rng(0), 2).min() == 2**53


def test_a_turn_repeats_the_full_blocks_of_the_turn_before() -> None:
    spec = synthetic(
        count=50,
        prompt_tokens={"kind": "exponential", "mean": 3000},
        sessions={
            "shared_blocks": 1,
            "continue_probability": [1.0, 1.0, 0.0],
            "turn_gap_quantiles": {0: "1 s", 1: "100 s"},
            "replaced_tokens_quantiles": {0: 0, 0.7: 0, 1: 3000},
            "added_tokens_quantiles": {0: 1, 1: 2000},
        },
    )
    requests = list(synthesize(spec, np.random.default_rng(0)))
    assert len(requests) == 150
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(requests))
    for request in requests:
        assert len(request.block_hashes) == -(-request.prompt_tokens // 512)
    owners: dict[int, int] = {}
    for number, request in enumerate(requests):
        for block in request.block_hashes:
            owners.setdefault(block, number)
    # Every request's hashes are a prefix of an earlier one's, then new ones of its own.
    for number, request in enumerate(requests):
        new = [owners[block] == number for block in request.block_hashes]
        assert new == sorted(new)


def test_streams_are_read_as_they_are_used() -> None:
    spec = synthetic(count=10**9)
    assert len(list(islice(synthesize(spec, np.random.default_rng(0)), 10))) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": None}, "poisson take exactly rate"),
        ({"arrivals": "gamma"}, "gamma take exactly cv, rate"),
        ({"arrivals": "closed_loop"}, "closed_loop take exactly think_time, users"),
        ({"prompt_tokens": {"kind": "lognormal", "mean": 3}}, "takes exactly cv, mean"),
        ({"output_tokens": {"kind": "quantiles", "quantiles": {0: 3}}}, "probabilities 0 and 1"),
        (
            {"output_tokens": {"kind": "quantiles", "quantiles": {0: 3, 1: 2}}},
            "must not fall",
        ),
    ],
)
def test_a_distribution_without_its_parameters_is_an_error(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic(**changes)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "trace_format", "count"),
    [
        ("azure_2023_conv.csv", "azure", 19_366),
        ("azure_2023_code.csv", "azure", 8_819),
        ("mooncake_conversation.jsonl", "mooncake", 12_031),
        ("mooncake_synthetic.jsonl", "mooncake", 3_993),
    ],
)
def test_the_public_traces_are_read_whole(name: str, trace_format: str, count: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not beside the checkout")
    requests, counts = read(SHARED / name, trace_format)
    assert (len(requests), counts.malformed) == (count, 0)


@pytest.mark.shared
@pytest.mark.parametrize(("trace", "rate"), [("conversation", 0.366), ("synthetic", 0.640)])
def test_the_ideal_hit_rates_are_the_published_ones(trace: str, rate: float) -> None:
    path = SHARED / f"mooncake_{trace}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the checkout")
    requests, _ = read(path, "mooncake")
    assert ideal_hit_rate(iter(requests)) == pytest.approx(rate, abs=0.0005)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 600),
        ({"limit": 50}, 50),
        ({"limit": 5000}, 600),
        ({"window": {"start": "0 s", "end": "5 s"}}, None),
        ({"window": {"start": "0 s", "end": "5 s"}, "limit": 7}, 7),
    ],
)
def test_a_synthetic_source_gives_its_count_or_its_limit_and_of_a_window_nobody_knows(
    changes, expected
):
    tokens = {"kind": "constant", "mean": 5}
    synthetic = {
        "arrivals": "poisson",
        "count": 600,
        "rate": "5 Hz",
        "prompt_tokens": tokens,
        "output_tokens": tokens,
    }
    source = RequestSource.model_validate({"synthetic": synthetic} | changes)
    assert expected_requests(source) == expected


def test_a_file_is_expected_to_hold_a_request_per_line(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    named = {"file": str(path), "format": "azure"}
    # Three requests and the header.
    assert expected_requests(RequestSource.model_validate(named)) == 4
    missing = RequestSource.model_validate(named | {"file": "nowhere.csv"})
    assert expected_requests(missing) is None
