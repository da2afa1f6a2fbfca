"""Sweeps: grids, rows that survive an interruption, limits, objectives and the front."""

import bisect
import dataclasses
import itertools
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.analysis import sweep
from simulator.analysis.parallel import ALONE
from simulator.analysis.run import price_kernels, simulated_metrics
from simulator.analysis.sweep import (
    Limit,
    Objective,
    Point,
    append_row,
    apply_limits,
    check_metrics,
    detail_of,
    front,
    grid,
    plain_values,
    rank,
    read_rows,
    run_points,
    run_sweep,
)
from simulator.hardware.kernels import completed
from simulator.scenario.axes import Axis

SCENARIO = "all_to_all_64"
NIC = "cluster.node.nic.bandwidth"


def row(reason=None, **metrics):
    return Point({"a": 1}, "d", metrics, reason)


def seed_of(scenario):
    """Stands for a run: gives back the seed that the point sets, and refuses seed 13."""
    if scenario.file.seed == 13:
        raise ValueError("seed 13 does not fit")
    return {"seed": scenario.file.seed, "of": {"file": scenario.where}, "table": [1, 2]}


def seed_of_a_process_that_20_kills(scenario):
    """The same, but seed 20 ends the process."""
    if scenario.file.seed == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return seed_of(scenario)


def nothing_to_prepare(scenarios):
    """Stands for work that scenarios share."""


def test_a_grid_holds_every_combination_last_axis_fastest():
    axes = [Axis.parse("seed=1,2"), Axis.parse(f"{NIC}=200 Gbit/s,400 Gbit/s")]
    points = grid(SCENARIO, (), axes)
    assert [tuple(point.settings.values()) for point in points] == list(
        itertools.product((1, 2), ("200 Gbit/s", "400 Gbit/s"))
    )
    assert len({point.digest for point in points}) == 4


@pytest.mark.parametrize(("detail", "end"), [("intervals", "-80"), ("tables", "-further")])
def test_rows_of_more_detail_are_others_than_plain_ones(detail, end):
    axes = [Axis.parse("seed=1,-1")]
    plain, wide = grid(SCENARIO, (), axes), grid(SCENARIO, (), axes, detail=detail)
    assert [point.digest for point in wide] == [f"{plain[0].digest}{end}", ""]


def test_a_sweep_works_out_a_step_of_its_own_only_where_its_figures_are_asked_for():
    assert detail_of(["step_time_s", "pair_time_s"], intervals=False) == "plain"
    assert detail_of(["without_all_to_all_slowdown.step_time_s"], intervals=False) == "tables"
    assert detail_of(["without_all_to_all_slowdown.step_time_s"], intervals=True) == "intervals"


def test_a_digest_tells_the_whole_scenario_from_others():
    (one,) = grid(SCENARIO, ("seed=4",), [Axis.parse("seed=5")])
    (same,) = grid(SCENARIO, (), [Axis.parse("seed=5")])
    (other,) = grid(SCENARIO, (f"{NIC}=200 Gbit/s",), [Axis.parse("seed=5")])
    assert one.digest == same.digest != other.digest


def test_a_point_that_does_not_load_has_a_reason_and_others_run():
    points = grid(SCENARIO, (), [Axis.parse("seed=1,-1")])
    assert points[0].reason is None
    assert "seed" in points[1].reason
    rows = run_sweep(points, SCENARIO, seed_of)
    assert [row.reason is None for row in rows] == [True, False]


def test_a_grid_of_which_nothing_loads_is_an_error():
    with pytest.raises(ValueError, match="sede"):
        grid(SCENARIO, (), [Axis.parse("sede=1,2")])


def test_a_path_varies_once():
    with pytest.raises(ValueError, match="seed: given more than once"):
        grid(SCENARIO, (), [Axis.parse("seed=1"), Axis.parse("seed=2")])


def test_a_point_that_cannot_run_is_a_row_with_its_reason():
    rows = run_sweep(grid(SCENARIO, (), [Axis.parse("seed=7,13")]), SCENARIO, seed_of)
    assert rows[0].metrics == {"seed": 7, "of.file": f"scenarios/{SCENARIO}.yaml"}
    assert rows[1].reason == "seed 13 does not fit"
    assert rows[1].metrics == {}


@pytest.mark.parametrize("where", ["here", "processes", "dask"])
def test_rows_are_the_same_wherever_they_run(where):
    points = grid(SCENARIO, (), [Axis.parse("seed=5,13,6,7")])
    expected = run_sweep(points, SCENARIO, seed_of)
    if where == "dask":
        from dask import distributed

        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster:
            rows = run_sweep(points, SCENARIO, seed_of, dask=cluster.scheduler_address)
    else:
        rows = run_sweep(points, SCENARIO, seed_of, jobs=2 if where == "processes" else 1)
    assert rows == expected


class Asked(Exception):
    """Stands for the first process."""


@pytest.mark.parametrize(("known", "asked"), [((), 2), ((5,), 1)])
def test_no_more_processes_than_points_to_run_are_asked_for(known, asked, monkeypatch):
    def begin(*_, jobs, dask):
        raise Asked(jobs)

    monkeypatch.setattr(sweep, "run_all", begin)
    # A seed below 0 is refused before any point runs.
    points = grid(SCENARIO, (), [Axis.parse("seed=5,-1,6")])
    rows = {point.digest: point for point in points if point.settings["seed"] in known}
    with pytest.raises(Asked, match=f"^{asked}$"):
        list(run_points(points, SCENARIO, seed_of, known=rows, jobs=8))


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_of_points_that_run_together_are_those_of_each_alone(jobs):
    points = grid(SCENARIO, (), [Axis.parse("seed=1,2,-1,13,4,5,6,7,8,9,10,11")])
    prepare = nothing_to_prepare
    rows = run_sweep(points, SCENARIO, seed_of, jobs=jobs, prepare=prepare)
    assert rows == run_sweep(points, SCENARIO, seed_of)


def test_points_that_run_together_are_prepared_together_and_give_their_rows_one_by_one():
    told = []
    first, middle, last = [101], [*range(102, 118)], [*range(118, 123)]
    points = grid(SCENARIO, (), [Axis.parse("seed=" + ",".join(map(str, range(101, 123))))])
    run_sweep(
        points,
        SCENARIO,
        seed_of,
        prepare=lambda scenarios: told.append([each.file.seed for each in scenarios]),
        done=lambda row: told.append(row.metrics["seed"]),
    )
    # The first alone: nobody knows how long it takes. Then six and half of the 21 that are left.
    assert told == [first, *first, middle, *middle, last, *last]


def test_a_point_that_kills_its_process_takes_no_other_with_it():
    points = grid(SCENARIO, (), [Axis.parse("seed=" + ",".join(map(str, range(14, 34))))])
    evaluate = seed_of_a_process_that_20_kills
    with pytest.warns(UserWarning, match="a worker process was killed"):
        rows = run_sweep(points, SCENARIO, evaluate, jobs=2, prepare=nothing_to_prepare)
    assert [row.metrics.get("seed") for row in rows] == [*range(14, 20), None, *range(21, 34)]
    assert rows[6].reason == str(ALONE)


@pytest.mark.parametrize(
    ("path", "rates"),
    [
        ("cluster.node.gpu.hbm_bandwidth", ["2 TB/s", "2.5 TB/s", "3 TB/s", "4 TB/s", "5 TB/s"]),
        (NIC, ["10 GB/s", "15 GB/s", "20 GB/s", "25 GB/s", "30 GB/s"]),
    ],
)
def test_rows_of_rates_are_the_same_in_any_order_however_many_run_together(path, rates):
    name = "dualpipe_h800_2048"
    points = grid(name, ("skew=none",), [Axis.of(path, rates)])
    together = run_sweep(points[::-1], name, simulated_metrics, prepare=price_kernels)
    completed._completed.cache_clear()
    alone = run_sweep(points, name, simulated_metrics)
    assert together[::-1] == alone
    assert len({row.metrics["step_time_s"] for row in alone}) == 5


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    kept = tmp_path / "rows.jsonl"
    points = grid(SCENARIO, (), [Axis.parse("seed=5,13,6")])
    ran = []

    def interrupted(scenario):
        ran.append(scenario.file.seed)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return seed_of(scenario)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(points, SCENARIO, interrupted, kept=kept)
    assert [row.metrics["seed"] for row in read_rows(kept).values()] == [5]
    assert len(kept.read_text().splitlines()) == 2  # seed 13, which did not run, is tried again
    kept.write_text(kept.read_text() + '{"check": "cut sh')
    ran.clear()

    def counted(scenario):
        ran.append(scenario.file.seed)
        return seed_of(scenario)

    assert run_sweep(points, SCENARIO, counted, kept=kept) == run_sweep(points, SCENARIO, seed_of)
    assert ran == [13, 6]


@pytest.mark.parametrize("byte", [0xFF, ord("\n"), ord("1")])
def test_a_damaged_byte_anywhere_costs_at_most_the_row_that_it_is_in(byte, tmp_path):
    kept = tmp_path / "rows.jsonl"
    for digest in "abc":
        append_row(kept, dataclasses.replace(row(x=23.5, y="text"), digest=digest))
    whole = kept.read_bytes()
    known = read_rows(kept)
    ends = list(itertools.accumulate(map(len, whole.splitlines(keepends=True))))
    for place in range(len(whole)):
        kept.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        damaged = "abc"[bisect.bisect_right(ends, place)]
        found = read_rows(kept)
        assert all(found[digest] == known[digest] for digest in set("abc") - {damaged})
        assert damaged not in found or found[damaged] == known[damaged]


def test_a_row_added_after_one_that_was_cut_short_is_kept(tmp_path):
    kept = tmp_path / "rows.jsonl"
    append_row(kept, dataclasses.replace(row(x=1), digest="a"))
    kept.write_bytes(kept.read_bytes()[:-20])
    append_row(kept, dataclasses.replace(row(x=2), digest="b"))
    assert read_rows(kept) == {"b": dataclasses.replace(row(x=2), digest="b")}


def test_a_point_that_fails_for_the_machine_is_a_row_and_is_tried_again(tmp_path):
    kept = tmp_path / "rows.jsonl"
    points = grid(SCENARIO, (), [Axis.parse("seed=5,6")])

    def failing(scenario):
        if scenario.file.seed == 5:
            raise MemoryError
        raise FileNotFoundError(2, "No such file or directory", "gone.csv")

    rows = run_sweep(points, SCENARIO, failing, kept=kept)
    assert [row.reason for row in rows] == [
        "not enough memory: none is left",
        "[Errno 2] No such file or directory: 'gone.csv'",
    ]
    rows = run_sweep(points, SCENARIO, seed_of, kept=kept)
    assert [row.metrics["seed"] for row in rows] == [5, 6]


def test_plain_values_have_paths_and_tables_are_left_out():
    nested = {"a": {"mean": 1.0, "p": {"q": "text"}}, "rows": [1], "b": True, "none": None}
    assert dict(plain_values(nested)) == {"a.mean": 1.0, "a.p.q": "text", "b": True, "none": None}


def test_an_interval_is_kept_as_its_two_ends():
    assert dict(plain_values({"interval_80": {"tpot_s.mean": [1.0, 2.0]}})) == {
        "interval_80.tpot_s.mean.low": 1.0,
        "interval_80.tpot_s.mean.high": 2.0,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tpot_s.mean<=50 ms", 0.05),
        ("peak_memory_bytes <= 80 GiB", 80 * 2**30),
        ("mfu_causal>=0.4", 0.4),
        ("nic<=400 Gbit/s", 50e9),
    ],
)
def test_a_limit_reads_numbers_and_quantities(text, value):
    assert Limit.parse(text).value == pytest.approx(value)


@pytest.mark.parametrize("text", ["tpot_s", "tpot_s=3", "<=3", "tpot_s<=soon", "tpot_s<=3 apples"])
def test_a_bad_limit_is_named(text):
    with pytest.raises(ValueError, match="--where"):
        Limit.parse(text)


@pytest.mark.parametrize("text", ["bytes_total", "no_such_figure", "less:step_time_s", "min:"])
def test_a_bad_objective_is_named(text):
    with pytest.raises(ValueError, match="--objective"):
        Objective.parse(text)


def test_a_row_outside_a_limit_says_which_and_keeps_its_metrics():
    limits = [Limit.parse("x<=1"), Limit.parse("y>=2")]
    inside, outside, failed = apply_limits(
        [row(x=1.0, y=2.0), row(x=2.0, y=3.0), row(reason="no room")], limits
    )
    assert inside.reason is None
    assert outside.reason == "outside x<=1"
    assert outside.metrics == {"x": 2.0, "y": 3.0}
    assert failed.reason == "no room"


def test_a_row_without_the_metric_keeps_no_limit():
    assert apply_limits([row(x=None)], [Limit.parse("x<=1")])[0].reason is not None


@pytest.mark.parametrize(
    ("text", "metric", "sign"),
    [
        ("step_time_s", "step_time_s", 1),
        ("tokens_per_day", "tokens_per_day", -1),
        ("ttft_s.p99", "ttft_s.p99", 1),
        ("max:step_time_s", "step_time_s", -1),
    ],
)
def test_a_metric_alone_is_an_objective_in_its_better_direction(text, metric, sign):
    assert Objective.parse(text) == Objective(metric, sign)


def test_rows_are_ranked_by_objectives_and_rows_with_a_reason_come_last():
    rows = [row(x=3), row(reason="outside", x=0), row(x=1), row(x=2)]
    assert rank(rows, [Objective.parse("min:x")]) == [2, 3, 0, 1]
    assert rank(rows, [Objective.parse("max:x")]) == [0, 3, 2, 1]
    assert rank(rows, []) == [0, 1, 2, 3]


def test_an_unknown_metric_is_named_with_the_one_that_is_meant():
    with pytest.raises(ValueError, match=r"^metric 'tpot_mean': unknown; did you mean tpot\.mean"):
        check_metrics(["x", "tpot_mean"], row(**{"x": 1, "tpot.mean": 2}))
    with pytest.raises(ValueError, match="'z': unknown; dsv3sim show metrics lists all"):
        check_metrics(["z"], row(x=1, y=2))
    check_metrics(["z"], row(reason="did not run"))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_row_beats(values):
    rows = [row(x=x, y=y) for x, y in values]
    best = front(rows, [Objective.parse("min:x"), Objective.parse("max:y")])
    for i, (x, y) in enumerate(values):
        beaten = any((a <= x and b >= y) and (a, b) != (x, y) for a, b in values)
        assert (i in best) == (not beaten)


def test_rows_with_a_reason_push_nothing_off_the_front():
    rows = [row(x=2), row(reason="outside", x=1)]
    assert front(rows, [Objective.parse("min:x")]) == {0}


def test_limits_and_objectives_may_name_a_metric_as_it_was_called_before():
    note = "speculation is called speculative_decoding now"
    with pytest.warns(FutureWarning, match=f"^--where: {note}$"):
        limit = Limit.parse("speculation.speed_up >= 1.5")
    with pytest.warns(FutureWarning, match=f"^--objective: {note}$"):
        goal = Objective.parse("max:speculation.speed_up")
    assert limit.metric == goal.metric == "speculative_decoding.speed_up"
