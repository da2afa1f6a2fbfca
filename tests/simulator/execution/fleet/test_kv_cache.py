"""The KV cache of an instance, as a fleet uses it."""

from functools import partial

import pytest
from fleets import check_conservation, fixed_requests, make_job, pool, run

from hardware_profiles.schema import ClusterProfile, load_cluster
from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.decode_batch import DecodeBatch
from simulator.execution.fleet.kv_cache import KvCache, longest_kv_tokens
from simulator.execution.fleet.live_request import LiveRequest
from simulator.execution.fleet.log import CollectedLog
from simulator.workload.requests import Request


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


def check_tokens(result: FleetRun, log: CollectedLog) -> None:
    """What iterations gave is what requests received, on the way to the end or to a restart."""
    given_tokens = float(log.all_iterations()["output_tokens"].sum())
    received = float(log.all_requests()["generated_tokens"].sum())
    # Where drafts make a step give a fraction, what is broken off loses less than a token.
    broken_off = result.restarts + result.preemptions + result.unfinished
    assert given_tokens == pytest.approx(received, rel=1e-9, abs=broken_off)


def test_an_emptied_cache_is_all_of_use_again_though_parts_of_tokens_were_freed(
    cluster: ClusterProfile,
) -> None:
    """A request of over 90% of the cache fits an empty rank only, where no watermark is kept."""
    job = make_job(
        {
            "synthetic": {
                "arrivals": "poisson",
                "rate": "20 Hz",
                "count": 10,
                "prompt_tokens": {"kind": "lognormal", "mean": 630, "cv": 1.0},
                "output_tokens": {"kind": "exponential", "mean": 7},
            }
        },
        colocated=pool(1, ranks=1, max_batch=8, kv_capacity_tokens=2000, page_tokens=None),
        speculative_decoding={"draft_tokens": 1, "acceptance": 0.85},
        kv_admission="reserve",
        kv_watermark=0.1,
    )
    result, log = run(job, cluster, seed=1)
    rows = log.all_requests()
    assert (rows["prompt_tokens"] + rows["output_tokens"]).max() > 0.9 * 2000
    assert not result.unfinished


@pytest.mark.parametrize(("page", "batch"), [(1, 10), (64, 7), (200, 5)])
def test_requests_take_whole_pages_the_last_of_them_half_empty_on_average(
    cluster: ClusterProfile, page: int, batch: int
) -> None:
    shape = pool(kv_capacity_tokens=1010, page_tokens=page)
    job = make_job(
        fixed_requests(40, 51, 50, rate="1 kHz"), colocated=shape, kv_admission="reserve"
    )
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    # A request grows to 100 tokens and takes half a page more.
    assert log.all_iterations()["batch"].max() == batch


def test_a_request_whose_pages_cannot_fit_is_rejected(cluster: ClusterProfile) -> None:
    shape = pool(kv_capacity_tokens=1010, page_tokens=64)
    job = make_job(fixed_requests(3, 980, 2), colocated=shape)
    result, _ = run(job, cluster)
    assert result.rejected == {"too_long": 3}


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_a_full_kv_cache_preempts_and_all_answers_come(
    cluster: ClusterProfile, preemption: str
) -> None:
    job = make_job(
        fixed_requests(60, 200, 400, rate="100 Hz"),
        prefill=pool(),
        decode=pool(),
        preemption=preemption,
        swap_capacity_tokens=10**6,
    )
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    check_tokens(result, log)
    assert result.preemptions > 0
    assert result.finished == 60


def test_reserving_the_whole_answer_never_preempts(cluster: ClusterProfile) -> None:
    job = make_job(
        fixed_requests(60, 200, 400, rate="100 Hz"),
        prefill=pool(),
        decode=pool(),
        kv_admission="reserve",
    )
    result, _ = run(job, cluster)
    assert (result.preemptions, result.finished) == (0, 60)


@pytest.mark.parametrize(
    ("output", "tokens_per_step", "tokens"),
    [(11, 1.0, 110), (11, 2.0, 110), (12, 2.0, 112), (11, 1.5, 100 + 7 * 1.5)],
)
def test_a_request_is_longest_after_whole_steps_for_all_but_its_first_token(
    output: int, tokens_per_step: float, tokens: float
) -> None:
    assert longest_kv_tokens(Request(0, 0.0, 100, output), tokens_per_step) == tokens


def cache_of(capacity: int, *, slack: int = 0, reserve_full: bool = False) -> KvCache:
    """A cache of two ranks whose batch, of at most 4 requests, has one of 20 tokens on rank 0."""
    batch = DecodeBatch(2, 1.0, slack=slack)
    decoding = LiveRequest(Request(0, 0.0, 20, 10), generated=1)
    decoding.rank = 0
    batch.join(decoding)
    return KvCache(batch, capacity=capacity, max_batch=4, reserve_full=reserve_full)


@pytest.mark.parametrize(("reserve_full", "in_use"), [(False, 10 + 5 + 20 + 5), (True, 10 + 5)])
def test_a_ranks_load_is_its_use_of_the_cache_plus_that_of_the_batch(
    reserve_full: bool, in_use: int
) -> None:
    """10 tokens set aside for a request to come, each with 5 of its last page; one decodes."""
    cache = cache_of(100, slack=5, reserve_full=reserve_full)
    cache.expect(LiveRequest(Request(1, 0.0, 10, 10), generated=0), 0, 10)
    assert cache.tokens == in_use
    assert cache.loads().tolist() == [in_use / 100 + 2 / 4, 0.0]
    (coming,) = cache.requests
    assert cache.arrive(coming) == 0
    cache.forget_loads()
    assert cache.loads().tolist() == [in_use / 100 + 1 / 4, 0.0]


def test_the_steps_that_free_cache_allows_are_shared_by_all_requests_of_a_rank() -> None:
    """Of 100 tokens two requests hold 20 each and a newcomer 9: 51 are left for 2 per step."""
    cache = cache_of(100)
    other = LiveRequest(Request(1, 0.0, 20, 10), generated=1)
    other.rank = 0
    cache._batch.join(other)
    cache.take(LiveRequest(Request(2, 0.0, 9, 10), generated=0), 0, 9)
    assert cache.steps_of_room_on(0) == 25


def test_a_cache_without_room_is_loaded_by_what_it_holds() -> None:
    cache = cache_of(0)
    cache.take(LiveRequest(Request(1, 0.0, 3, 10), generated=0), 1, 3)
    assert cache.loads()[1] == 3.0


def fitting_of(
    cache: KvCache, need: float, *, more: int = 0, ahead: int = 0, watermark: float = 0.0
) -> list[int]:
    """Both ranks, or the one, that a newcomer fits."""
    first = partial(cache.first_fitting, need=need, more=more, ahead=ahead, watermark=watermark)
    fitting = [rank for rank in (0, 1) if first((rank,)) == rank]
    # Of several the first is found, in whatever order they are asked.
    assert first((0, 1)) == next(iter(fitting), None)
    assert first((1, 0)) == next(iter(fitting[::-1]), None)
    return fitting


def test_a_watermark_keeps_a_part_of_the_cache_free_of_newcomers() -> None:
    """Of 100 tokens 20 are in use and the next needs one; a tenth stays free, so that 69 fit and 70
    do not."""
    cache = cache_of(100)
    for need, fitting in ((69, [0, 1]), (70, [1])):
        assert fitting_of(cache, need, watermark=0.1) == fitting
    assert fitting_of(cache, 79) == [0, 1]
    # An empty rank gives all it has.
    assert fitting_of(cache, 100, watermark=0.1) == [1]


def test_a_newcomer_fits_where_the_next_tokens_of_all_have_room_too() -> None:
    """By then 2 steps have made 20 tokens 22, and each of two requests needs one: 76 are left."""
    cache = cache_of(100)
    for need, fitting in ((76, [0, 1]), (77, [1])):
        assert fitting_of(cache, need, more=1, ahead=2) == fitting


def test_a_full_batch_has_no_place_for_a_newcomer() -> None:
    """One of at most 4 requests decodes, 3 are expected; without them there is room."""
    cache = cache_of(100)
    coming = [LiveRequest(Request(number, 0.0, 1, 10)) for number in range(1, 4)]
    for live in coming:
        assert fitting_of(cache, 1) == [0, 1]
        cache.expect(live, 0, 1)
    assert fitting_of(cache, 1) == [1]


def test_what_a_decoded_request_frees_is_what_it_took_its_last_page_included() -> None:
    """10 tokens of a prompt, 5 of a last page, and 3 of its steps."""
    cache = cache_of(100, slack=5)
    live = LiveRequest(Request(1, 0.0, 10, 10), generated=1)
    cache.take(live, 1, 10)
    live.rank = 1
    cache.start_decoding(live)
    assert cache.allocated == 15
    cache.grow(3)
    assert cache.allocated == 15 + 3 * 2
    cache._batch.step += 3
    cache.free_decoded(live)
    assert cache.freed == 10 + 5 + 3
    assert cache.empty
