"""Whole training runs worked out by hand, and against the closed form of Young and Daly."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.execution import pretraining
from simulator.execution.pretraining import (
    CAUSES,
    Plan,
    _Job,
    checkpoint_ends,
    optimal_interval,
    run_once,
    run_with,
)
from simulator.scenario.pretraining import FailureKind

GPU = {"gpu": FailureKind(gpu_hours_between=1 / 3600, detection="3 s", replaces_node=True)}


def plan(**changes: object) -> Plan:
    """Ten stretches of 100 s, 5 s for a checkpoint, 7 s to read it, 11 s to start again."""
    given = {
        "ends_s": np.arange(1, 11) * 100.0,
        "stall_s": 5.0,
        "write_s": 0.0,
        "reload_s": 7.0,
        "restart_s": 11.0,
        "kinds": GPU,
        "gpus": 1,
        "spares": 4,
        "repair_s": 1e6,
    }
    return Plan(**given | changes)  # type: ignore[arg-type]


def spent(**seconds: float) -> dict[str, float]:
    return dict.fromkeys(CAUSES, 0.0) | seconds


def fails_at(*moments: float) -> dict[str, object]:
    return {"gpu": iter(np.diff(moments, prepend=0.0).tolist())}


def test_without_failures_and_stalls_a_run_is_the_sum_of_its_steps() -> None:
    seconds = np.array([0.1, 0.2, 0.3] * 1000)
    alone = plan(ends_s=checkpoint_ends(np.cumsum(seconds), math.inf), kinds={})

    assert run_with(alone, failures={}).wall_s == float(np.cumsum(seconds)[-1])


def test_training_stops_at_every_checkpoint_but_not_at_the_end() -> None:
    assert run_with(plan(), failures={}).seconds == spent(training=1000.0, checkpoints=45.0)


def test_steps_of_a_slower_run_take_longer_and_its_stalls_do_not() -> None:
    log = run_with(plan(), slower=1.5, failures={})

    assert log.seconds == pytest.approx(spent(training=1500.0, checkpoints=45.0), rel=1e-12)


def test_a_failure_goes_back_to_the_last_checkpoint_and_starts_again() -> None:
    # Checkpoints are whole at 105 and 210: 250 - 210 are lost; 3 + 11 + 7 until it goes on.
    log = run_with(plan(), failures=fails_at(250.0))

    assert log.seconds == spent(
        training=1000.0, checkpoints=45.0, lost=40.0, detection=3.0, restart=11.0, reload=7.0
    )
    assert log.wall_s == 1106.0
    assert [(i.at_s, i.kind, i.lost_s, i.position) for i in log.incidents] == [
        (250.0, "gpu", 40.0, 210.0)
    ]
    assert log.states == [
        (0.0, 210.0, "training"),
        (210.0, 250.0, "lost"),
        (250.0, 253.0, "detection"),
        (253.0, 264.0, "restart"),
        (264.0, 271.0, "reload"),
        (271.0, 1106.0, "training"),
    ]
    # 200 s of training were there after one stall; 300 s a hundred after the restart at 271 s.
    assert log.reached_s(plan(), 200.0) == 205.0
    assert log.reached_s(plan(), 300.0) == 371.0


def test_a_failure_at_the_end_of_a_checkpoint_loses_nothing() -> None:
    log = run_with(plan(), failures=fails_at(210.0))

    assert [(since, until, state) for since, until, state in log.states][:2] == [
        (0.0, 210.0, "training"),
        (210.0, 213.0, "detection"),
    ]


def test_a_failure_behind_a_slow_node_goes_back_before_it() -> None:
    # Slow from 150 on; at 180 the last checkpoint that is whole is that of 105.
    slow = plan(slow_rate=1.0, slowdown=1.25, found_after_s=1e5)
    log = run_with(slow, failures=fails_at(180.0), slow_nodes=iter([150.0]))

    assert log.states[:2] == [(0.0, 105.0, "training"), (105.0, 180.0, "lost")]
    assert (log.stretches[0].from_s, log.stretches[0].to_s) == (0.0, 105.0)
    # The other 900 s of training take a quarter longer.
    assert log.seconds["training"] == pytest.approx(1000.0, rel=1e-12)
    assert log.seconds["slow"] == pytest.approx(225.0, rel=1e-12)


def test_a_checkpoint_that_did_not_end_cannot_be_read() -> None:
    # At 203 the second checkpoint is three of its five seconds old.
    log = run_with(plan(), failures=fails_at(203.0))

    assert log.seconds["lost"] == 203.0 - 105.0


def test_a_checkpoint_written_in_the_background_counts_from_its_end() -> None:
    # Stall from 100 to 105, written until 125: a failure at 124 loses all, one at 126 loses 21.
    behind = plan(write_s=20.0)

    assert run_with(behind, failures=fails_at(124.0)).seconds["lost"] == 124.0
    assert run_with(behind, failures=fails_at(126.0)).seconds["lost"] == 21.0


def test_a_failure_during_recovery_begins_it_again() -> None:
    # 250: detection until 253, restart until 264; at 260 the next failure: 7 s of restart spent.
    log = run_with(plan(), failures=fails_at(250.0, 260.0))

    assert log.seconds == spent(
        training=1000.0, checkpoints=45.0, lost=40.0, detection=6.0, restart=18.0, reload=7.0
    )


def test_a_run_that_fails_faster_than_it_starts_again_is_refused(monkeypatch) -> None:
    """Every 10 s, where finding a failure and starting again take 14 s."""
    monkeypatch.setattr(pretraining, "MOST_EVENTS", 3)
    assert run_with(plan(), failures=fails_at(10, 20, 30)).seconds["training"] == 1000
    said = (
        "pretraining.failures.gpu: the run has not ended after 3 of them, at 0.00% of its work; "
        "allowed: more gpu_hours_between"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        run_with(plan(), failures=fails_at(10, 20, 30, 40))
    # The last checkpoint is that of 210 s, of 1,045.
    with pytest.raises(ValueError, match=r"at 20\.10% of its work"):
        run_with(plan(), failures=fails_at(250, 260, 270, 280))


def test_a_run_may_have_a_hundred_thousand_events_of_a_kind() -> None:
    job = SimpleNamespace(plan=SimpleNamespace(end=4.0), _position=1.0)
    waits = _Job._counted(job, itertools.repeat(2.0), "slow_nodes")  # type: ignore[arg-type]
    assert sum(1 for _ in itertools.islice(waits, 100_000)) == 100_000
    with pytest.raises(ValueError, match=r"slow_nodes: .* after 100,000 of them, at 25\.00% of"):
        next(waits)


def test_without_a_spare_the_run_waits_for_a_repair() -> None:
    # The node of 250 is back at 350; the run would have gone on reading at 264.
    log = run_with(plan(spares=0, repair_s=100.0), failures=fails_at(250.0))

    assert log.seconds["waiting_for_nodes"] == 350.0 - 264.0
    assert log.wall_s == 1106.0 + 86.0


def test_a_spare_that_came_back_from_repair_is_used_again() -> None:
    log = run_with(plan(spares=1, repair_s=100.0), failures=fails_at(250.0, 450.0))

    assert log.seconds["waiting_for_nodes"] == 0.0


def test_a_repaired_node_is_one_spare() -> None:
    # The node of 250 is the spare of 450; that of 460 waits, from 474 on, for the one of 450.
    log = run_with(plan(spares=1, repair_s=100.0), failures=fails_at(250.0, 450.0, 460.0))

    assert log.seconds["waiting_for_nodes"] == 550.0 - 474.0


def test_a_run_that_shrinks_goes_on_with_one_part_less_until_the_repair() -> None:
    # From 271 on half of the parts train, at half speed: 800 s of training are left. The node is
    # back at 350, 79 s later, and 39.5 s of training; a checkpoint, a restart and reading follow.
    shrinking = plan(spares=0, repair_s=100.0, shrinks=True, parts=2, nodes_per_part=3)
    log = run_with(shrinking, failures=fails_at(250.0))

    assert log.seconds == pytest.approx(
        spent(
            training=1000.0,
            slow=39.5,
            checkpoints=50.0,
            lost=40.0,
            detection=3.0,
            restart=22.0,
            reload=14.0,
        ),
        rel=1e-12,
    )


def test_three_of_four_parts_take_a_third_longer() -> None:
    # 79 s until the node is back are 59.25 s of training, 19.75 s less than four would do.
    shrinking = plan(spares=0, repair_s=100.0, shrinks=True, parts=4, nodes_per_part=3)
    log = run_with(shrinking, failures=fails_at(250.0))

    assert log.seconds["slow"] == pytest.approx(19.75, rel=1e-12)


def test_one_part_cannot_shrink() -> None:
    alone = plan(spares=0, repair_s=100.0, shrinks=True, parts=1, nodes_per_part=3)

    assert run_with(alone, failures=fails_at(250.0)).seconds["waiting_for_nodes"] == 86.0


def test_a_slow_node_slows_all_until_it_is_found_and_loses_no_work() -> None:
    # Slow from 150 to 250: the second checkpoint begins at 150 + 55 x 1.25 (45 s of training were
    # done at 150) = 218.75 - stall at 5 s - and ends at 218.75 + 5 - 12.5 ...: by hand, 105 to 150
    # is 45 s of training; 55 s more take 68.75 s, until 218.75; the stall until 223.75; 26.25 s
    # until 250 are 21 s of training. 76 s of training took 95 s: 19 s more.
    slow = plan(slow_rate=1.0, slowdown=1.25, found_after_s=100.0)
    log = run_with(slow, failures={}, slow_nodes=iter([150.0]))

    assert log.seconds == pytest.approx(
        spent(training=1000.0, slow=19.0, checkpoints=50.0, restart=11.0, reload=7.0), rel=1e-12
    )
    assert log.wall_s == pytest.approx(1087.0, rel=1e-12)


def test_a_failure_while_a_planned_checkpoint_is_written_goes_back_to_the_one_before() -> None:
    # Found at 250; the checkpoint would be whole at 255. Back to the one of 223.75 (see above).
    slow = plan(slow_rate=1.0, slowdown=1.25, found_after_s=100.0)
    log = run_with(slow, failures=fails_at(252.0), slow_nodes=iter([150.0]))

    assert log.seconds["lost"] == pytest.approx(252.0 - 223.75, rel=1e-12)


def test_checkpoints_come_after_whole_steps() -> None:
    # Steps of 30 s, a checkpoint every 100 s: after 120, 240 ... and none at the end.
    assert checkpoint_ends(np.arange(1, 13) * 30.0, 100.0).tolist() == [120.0, 240.0, 360.0]
    assert checkpoint_ends(np.arange(1, 4) * 30.0, math.inf).tolist() == [90.0]
    # Steps of a tenth of a second: six of them add up to less than three and three tenths, rounded.
    tenths = np.cumsum([0.1] * 10)
    assert tenths[5] < tenths[2] + 0.3
    assert checkpoint_ends(tenths, 0.3).tolist() == tenths[[2, 5, 8, 9]].tolist()


def test_dalys_interval_worked_out_by_hand() -> None:
    # sqrt(2 x 8 x 100) = 40; 8 / 200 = 0.04: 40 x (1 + 0.2 / 3 + 0.04 / 9) - 8.
    assert optimal_interval(8.0, 100.0) == pytest.approx(40 * (1 + 0.2 / 3 + 0.04 / 9) - 8)
    # A stall of twice the time between failures or more.
    assert optimal_interval(199.0, 100.0) == pytest.approx(
        (2 * 199 * 100) ** 0.5 * (1 + 0.995**0.5 / 3 + 0.995 / 9) - 199
    )
    assert [optimal_interval(stall, 100.0) for stall in (200.0, 250.0, 300.0)] == [100.0] * 3
    assert optimal_interval(8.0, math.inf) == math.inf


BETWEEN, STALL, RECOVERY = 36_000.0, 60.0, 300.0


def _runs(interval_s: float) -> tuple[np.ndarray, int]:
    """Length over training time of 200 runs of 100 hours, with failures every ten, and how many
    failures they had; they are the same for every interval."""
    steps = np.arange(1, 100 * 3600 // 5 + 1) * 5.0
    saved = Plan(
        ends_s=checkpoint_ends(steps, interval_s),
        stall_s=STALL,
        write_s=0.0,
        reload_s=100.0,
        restart_s=100.0,
        kinds={
            "gpu": FailureKind(
                gpu_hours_between=BETWEEN / 3600, detection="100 s", replaces_node=False
            )
        },
        gpus=1,
    )
    seeds = np.random.SeedSequence(7).spawn(200)
    logs = [run_once(saved, slower=1.0, seed=seed) for seed in seeds]
    lengths = np.array([log.wall_s for log in logs]) / steps[-1]
    return lengths, sum(len(log.incidents) for log in logs)


def test_dalys_interval_loses_what_the_closed_form_says_and_no_other_loses_less() -> None:
    best = optimal_interval(STALL, BETWEEN)
    at_best, failures = _runs(best)
    assert failures == 2208

    for interval in (best, math.sqrt(2 * STALL * BETWEEN) - STALL):
        lengths, failures = _runs(interval)
        whole = math.ceil(interval / 5) * 5.0
        # Daly, equation 20, for the rate that these failures had.
        between = float(lengths.sum()) * 360_000 / failures
        expected = between / whole * math.exp(RECOVERY / between)
        expected *= math.expm1((whole + STALL) / between)
        assert lengths.mean() - 1 == pytest.approx(expected - 1, rel=0.02)
    for factor in (0.25, 0.4, 0.6, 0.8, 0.9, 1.1, 1.25, 1.7, 2.5):
        other = _runs(best * factor)[0] - at_best
        assert other.mean() > -other.std(ddof=1) / math.sqrt(len(other))


@settings(max_examples=60, deadline=None)
@given(
    moments=st.lists(st.floats(0.1, 1500.0), max_size=6, unique=True),
    slow=st.lists(st.floats(1.0, 500.0), max_size=3),
    write_s=st.sampled_from([0.0, 20.0, 90.0]),
    spares=st.integers(0, 3),
    shrinks=st.booleans(),
)
def test_causes_sum_to_the_clock_and_a_failure_loses_at_most_one_interval(
    moments: list[float], slow: list[float], write_s: float, spares: int, shrinks: bool
) -> None:
    """Wherever failures fall, in stalls, recoveries or behind each other."""
    eager = plan(
        write_s=write_s,
        spares=spares,
        repair_s=120.0,
        shrinks=shrinks,
        parts=2,
        nodes_per_part=8,
        slow_rate=1.0,
        slowdown=1.25,
        found_after_s=70.0,
    )
    log = run_with(eager, failures=fails_at(*sorted(moments)), slow_nodes=iter(slow))

    clock = log.states[-1][1]
    assert log.wall_s == pytest.approx(clock, rel=1e-9)
    assert log.seconds["training"] == pytest.approx(1000.0, rel=1e-9)
    # 100 s of training at half speed and with a slow node, a stall, and what was still written,
    # or a planned checkpoint.
    longest = 100.0 * 2 * 1.25 + 2 * eager.stall_s + 2 * write_s
    assert all(incident.lost_s <= longest * (1 + 1e-9) for incident in log.incidents)
    reached = [log.reached_s(eager, done) for done in (50.0, 150.0, 500.0, 1000.0)]
    assert reached == sorted(reached)
    assert reached[-1] == pytest.approx(clock, rel=1e-9)
