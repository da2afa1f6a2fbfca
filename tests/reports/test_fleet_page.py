"""The page of a fleet."""

from reports.fleet_page import limits_text


def metrics(**changes):
    found = {
        "ttft_s": {"p90": 1.0},
        "tpot_s": {"p90": 0.06},
        "service_level": {"ttft_s": 2.0, "tpot_s": 0.05},
        "pools": {
            "prefill": {"utilisation": 0.4, "kv_occupancy": 0.1},
            "decode": {"utilisation": 1.0, "kv_occupancy": 0.93},
        },
    }
    return found | changes


def test_what_limits_a_fleet_is_the_part_of_the_service_level_that_it_misses_and_the_busiest_pool():
    assert limits_text(metrics()) == (
        "TPOT: its p90 is 60 ms, 50 ms was asked for; the decode pool is busy 100% of the time, KV "
        "cache of the decode pool is 93% full."
    )
    assert limits_text(metrics(tpot_s={"p90": None}, pools={})) == "Nothing that was measured."
