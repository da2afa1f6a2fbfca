"""Results are the same wherever they are made, and workers that die take none with them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dask import distributed

from simulator.analysis import parallel
from simulator.analysis.parallel import ALONE, begin_processes, run_all, run_in_order

LONG_S = 4


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))


def square(x):
    return x * x


def square_after_a_kill(x, marks, main):
    """Kills its worker when it is first asked for 3, and never this process."""
    mark = Path(marks) / "killed"
    if x == 3 and not mark.exists() and os.getpid() != main:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def square_but_never_of_3(x, main):
    if x == 3 and os.getpid() != main:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def write_down_the_process(folder):
    Path(folder, str(os.getpid())).touch()
    raise ValueError("nobody hears of it")


def sleep_below_0(x):
    time.sleep(max(-x, 0))
    return x


def square_in_a_while(x, main):
    """At once in the process of the test; a worker never gets to the end."""
    if os.getpid() != main or threading.current_thread() is not threading.main_thread():
        time.sleep(LONG_S)
    return x * x


@pytest.mark.parametrize("jobs", [1, 2, 64])
def test_results_come_with_the_position_of_their_input(jobs):
    assert sorted(run_all(square, [(2,), (3,), (5,)], jobs=jobs)) == [(0, 4), (1, 9), (2, 25)]


def test_processes_that_are_begun_make_a_call_of_their_own_before_any_other(tmp_path):
    begin_processes(write_down_the_process, tmp_path, jobs=2)
    assert dict(run_all(square, [(n,) for n in range(20)], jobs=2)) == {n: n * n for n in range(20)}
    made = {int(path.name) for path in tmp_path.iterdir()}
    assert 1 <= len(made) <= 2
    assert os.getpid() not in made


def test_one_job_begins_no_process(tmp_path):
    begin_processes(write_down_the_process, tmp_path, jobs=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_input_may_wait_for_the_result_of_another(jobs):
    results = {}

    def inputs():
        yield (2,)
        while 0 not in results:
            yield None
        yield (results[0] + 1,)

    for position, result in run_all(square, inputs(), jobs=jobs):
        results[position] = result
    assert results == {0: 4, 1: 25}


def test_a_caller_who_has_seen_enough_waits_for_no_other_call():
    first = next(run_all(sleep_below_0, [(3,), (-LONG_S,)], jobs=2))
    start_s = time.monotonic()
    assert first == (0, 3)
    assert list(run_all(square, [(2,), (3,)], jobs=2)) in ([(0, 4), (1, 9)], [(1, 9), (0, 4)])
    assert time.monotonic() - start_s < LONG_S


def test_no_more_processes_than_cores_are_started(monkeypatch):
    asked = []
    real = parallel._in_processes
    monkeypatch.setattr(
        parallel, "_in_processes", lambda f, part, n: asked.append(n) or real(f, part, n)
    )
    assert len(list(run_all(square, [(2,), (3,)], jobs=10**9))) == 2
    assert asked == [4]


def test_no_more_processes_than_inputs_are_started(monkeypatch):
    asked = []
    real = parallel._in_processes
    monkeypatch.setattr(
        parallel, "_in_processes", lambda f, part, n: asked.append(n) or real(f, part, n)
    )
    assert list(run_in_order(square, [(2,), (3,), (5,)], jobs=4)) == [4, 9, 25]
    assert list(run_in_order(square, [(2,)], jobs=4)) == [4]
    assert list(run_in_order(square, [], jobs=4)) == []
    assert asked == [3]


BUSY = """
import os, sys, time
from simulator.analysis.parallel import run_all
os.sched_getaffinity = lambda _: {0, 1}
for position, _ in run_all(time.sleep, [(0,), (600,), (600,)], jobs=2):
    print(position, flush=True)
"""


def test_processes_end_with_the_one_that_began_them():
    """They hold its output open for as long as they run; one of the two is in a call of 600 s."""
    first = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "0\n"
    first.kill()
    rest, _ = first.communicate(timeout=60)
    assert (rest, first.returncode) == ("", -signal.SIGKILL)


def test_a_killed_worker_costs_no_result(tmp_path):
    inputs = [(x, str(tmp_path), os.getpid()) for x in range(6)]
    with pytest.warns(UserWarning, match=r"a worker process was killed; \d runs begin again, 2 at"):
        found = dict(run_all(square_after_a_kill, inputs, jobs=4))
    assert found == {x: x * x for x in range(6)}


def test_an_input_that_always_kills_its_worker_is_lost_alone():
    inputs = [(x, os.getpid()) for x in range(5)]
    with pytest.warns(UserWarning, match="a worker process was killed"):
        found = dict(run_all(square_but_never_of_3, inputs, jobs=2))
    assert found == {0: 0, 1: 1, 2: 4, 3: ALONE, 4: 16}


def test_results_in_order_name_the_input_that_is_lost():
    assert list(run_in_order(square, [(2,), (3,), (5,)], jobs=2)) == [4, 9, 25]
    inputs = [(x, os.getpid()) for x in (1, 3)]
    with (
        pytest.warns(UserWarning, match="a worker process was killed"),
        pytest.raises(ValueError, match=r"^3: its process was killed, also alone"),
    ):
        list(run_in_order(square_but_never_of_3, inputs, jobs=2))


def test_a_dask_worker_that_is_killed_costs_no_result(tmp_path):
    inputs = [(x, str(tmp_path), os.getpid()) for x in range(6)]
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        found = dict(run_all(square_after_a_kill, inputs, jobs=1, dask=cluster.scheduler_address))
    assert found == {x: x * x for x in range(6)}
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize("lost", ["scheduler", "workers"])
def test_where_a_dask_cluster_is_lost_this_machine_does_the_rest(lost, monkeypatch):
    monkeypatch.setattr(parallel, "NO_WORKERS_S", 0.1 if lost == "workers" else LONG_S)
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    )
    inputs = [(x, os.getpid()) for x in range(3)]
    lose = cluster.close if lost == "scheduler" else lambda: cluster.scale(0)
    timer = threading.Timer(1.0, lose)
    timer.start()
    what = "the dask scheduler is gone" if lost == "scheduler" else "no dask worker is left"
    with pytest.warns(UserWarning, match=f"{what}; this machine does the rest"):
        found = dict(run_all(square_in_a_while, inputs, jobs=1, dask=cluster.scheduler_address))
    timer.join()
    cluster.close()
    assert found == {0: 0, 1: 1, 2: 4}


def test_a_scheduler_that_does_not_answer_is_one_line():
    with pytest.raises(ValueError, match=r"--dask tcp://127\.0\.0\.1:9: no scheduler answers"):
        list(run_all(square, [(2,)], jobs=1, dask="tcp://127.0.0.1:9"))
