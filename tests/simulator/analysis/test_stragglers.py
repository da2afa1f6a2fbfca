"""Slow ranks of a recorded job: by hand on two stages and two replicas, and as others found it."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.analysis.stragglers import (
    ONCE,
    StragglerTrace,
    arranged,
    held_against_published,
    published_cost,
    read_recorded_job,
    straggler_cost,
)

SHARED = Path(__file__).resolve().parents[4] / "shared/measured/stragglers"
needs_traces = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")

# One micro-batch; replica 1 takes 6 s for the backward of stage 1, replica 0 takes 4 s.
#
#   replica 0   stage 0: gather .25, F to 1.25 .................... B 8.25 to 10.25
#               stage 1: ........ arrives 1.75, F to 3.75, B to 7.75
#   replica 1   the same, two seconds later from the backward of stage 1 on: 12.25
#
# Embeddings of both stages 0.5, gradients of both replicas 1, clip of all 0.25, optimizer 1.


def by_hand() -> StragglerTrace:
    rows = []
    for replica, late in ((0, 0.0), (1, 2.0)):

        def add(kind: str, stage: int, start: float, end: float, replica: int = replica) -> None:
            rows.append((kind, stage, replica, 7, 0, start, end - start))

        for stage in (0, 1):
            add("params-all-gather", stage, 0.0, 0.25)
            add("gc", stage, 7.75 + late, 7.75 + late)
            add("layernorm-grads-all-reduce", stage, 10.25 + late, 10.25 + late)
            add("grads-reduce-scatter", stage, 10.75 + late, 13.75)
            add("optimizer-clip-main-grad", stage, 13.75, 14.0)
            add("optimizer", stage, 14.0, 15.0)
        add("forward-compute", 0, 0.25, 1.25)
        add("forward-send", 0, 1.25, 1.75)
        add("forward-recv", 1, 0.25, 1.75)
        add("forward-compute", 1, 1.75, 3.75)
        add("backward-compute", 1, 3.75, 7.75 + late)
        add("backward-send", 1, 7.75 + late, 8.25 + late)
        add("backward-recv", 0, 1.25, 8.25 + late)
        add("backward-compute", 0, 8.25 + late, 10.25 + late)
        add("embedding-grads-all-reduce", 1, 7.75 + late, 10.75 + late)
        add("embedding-grads-all-reduce", 0, 10.25 + late, 10.75 + late)
    names = ("optype", "stage", "dp_rank", "step", "seq_id", "start_ts", "duration")
    columns = {
        name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    return arranged(columns, stages=2, replicas=2)


def test_waiting_is_no_part_of_a_transfer_or_collective() -> None:
    trace = by_hand()

    assert trace.work_s["backward-compute"][:, 0, :, 0].tolist() == [[2, 2], [4, 6]]
    assert trace.sends_s["forward-pp-comm"][:, 0, :, 0].tolist() == [[0, 0], [0.5, 0.5]]
    assert trace.sends_s["backward-pp-comm"][:, 0, :, 0].tolist() == [[0.5, 0.5], [0, 0]]
    assert trace.once_s["grads-reduce-scatter"][:, 0, :, 0].tolist() == [[1, 1], [1, 1]]
    assert trace.once_s["embedding-grads-all-reduce"][:, 0, :, 0].tolist() == [[0.5] * 2] * 2


def test_a_step_ends_when_the_slowest_replica_and_what_waits_for_it_have() -> None:
    """12.25 s of replica 1, then 0.5 + 1 + 0.25 + 1."""
    assert straggler_cost(by_hand()).steps_s == {7: 15.0}


def test_even_operations_take_the_mean_of_their_kind() -> None:
    """Forwards 1.5 s, backwards (2 + 2 + 4 + 6) / 4 = 3.5 s: 0.25 + 1.5 + 0.5 + 1.5 + 3.5 + 0.5 +
    3.5 = 11.25 s, then 2.75 s."""
    found = straggler_cost(by_hand())

    assert found.even_s == {7: 14.0}
    assert found.slowdown == 15 / 14


def test_the_loss_is_blamed_on_the_replica_stage_and_kind_that_cause_it() -> None:
    """Stage 1 alone as it was: 0.25 + 1.5 + 0.5 + 2 + 6 + 0.5 + 3.5 = 14.25 s, then 2.75 s."""
    causes = straggler_cost(by_hand()).causes

    assert causes["replica"] == {"0": 1.0, "1": 15 / 14}
    assert causes["kind"]["backward-compute"] == 15 / 14
    assert causes["kind"]["forward-compute"] == 1.0
    assert causes["stage"]["1"] == 17 / 14


def test_a_trace_that_lacks_a_micro_batch_is_refused() -> None:
    columns = {
        "optype": np.array(["forward-compute", "backward-compute"]),
        **{name: np.zeros(2) for name in ("stage", "seq_id", "dp_rank", "step", "start_ts")},
        "duration": np.ones(2),
    }

    with pytest.raises(ValueError, match="a stage does not compute every micro-batch"):
        arranged(columns, stages=2, replicas=1)


TRACE = "optype,stage,dp_rank,step,seq_id,start_ts,duration\n" + "".join(
    f"{kind},{stage},0,7,0,{start},{duration}\n"
    for kind, stage, start, duration in (
        ("forward-compute", 0, 0.0, 1.0), ("forward-send", 0, 1.0, 0.5),
        ("forward-recv", 1, 0.0, 1.5), ("forward-compute", 1, 1.5, 1.0),
        ("backward-compute", 1, 2.5, 2.0), ("backward-send", 1, 4.5, 0.5),
        ("backward-recv", 0, 1.0, 4.0), ("backward-compute", 0, 5.0, 2.0),
        *((kind, stage, 7.0, 1.0) for kind in ONCE for stage in (0, 1)),
    )
)  # fmt: skip
META = "{dp_size: 1, pp_size: 2, vpp_size: 1}\n"
RESULT = (
    '{"step_t_nodelay": {"7": 14.0}, "step_t_noblk": {"7": 14.0}, "blocking_slowdown": 1.0,'
    ' "blocking_decompose_by_optype": {"gc": 1.0}, "blocking_decompose_by_stage": {"0": 1.0},'
    ' "blocking_decompose_by_dp_rank": {"0": 1.0}}'
)


def job(folder: Path, *, trace: str = TRACE, meta: str = META, result: str = RESULT) -> Path:
    """A folder with one recorded job, "a"."""
    pd.read_csv(io.StringIO(trace)).to_parquet(folder / "trace-a.parquet")
    (folder / "meta-a.yaml").write_text(meta)
    (folder / "result-a.json").write_text(result)
    return folder


def test_a_recorded_job_is_read_from_its_files(tmp_path: Path) -> None:
    """Gather 1; forwards 1 and 1 after 0.5 s, backwards 2 and 2 after 0.5 s: 8 s; gc, layer norms,
    embeddings, gradients, clip and optimizer 1 s each."""
    simulated, published = held_against_published(job(tmp_path), "a")

    assert simulated.steps_s == published.steps_s == {7: 14.0}
    assert simulated.slowdown == published.slowdown == 1.0


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"meta": "dp_size: 1\n"}, "meta-a.yaml: vpp_size: None; allowed: a whole number from 1"),
        ({"meta": "{"}, "meta-a.yaml: line 2: not valid YAML"),
        ({"meta": META.replace("2", "2.5")}, "meta-a.yaml: pp_size: 2.5; allowed: a whole number"),
        ({"meta": META.replace("2", "1")}, "trace-a.parquet: allowed: one stage per rank"),
        ({"meta": META.replace("2", "1000000000")}, "a stage does not compute every micro-batch"),
        ({"trace": TRACE.replace("optype", "kind")}, "trace-a.parquet: column 'optype' is missing"),
        (
            {"trace": TRACE.replace(",1,0,7", ",2,0,7")},
            "column 'stage'; allowed: whole numbers",
        ),
        ({"trace": TRACE.replace(",0.5", ",-1")}, "column 'duration'; allowed: seconds from 0 to"),
        ({"trace": TRACE.replace(",0.5", ",x")}, "column 'duration'; allowed: seconds from 0 to"),
        ({"trace": TRACE.replace("gc,0,0,7,0", "gc,0,0,7,1")}, "'gc' happens more than 1 times"),
        (
            {"trace": TRACE.replace(",0.0,1.0\n", ",0,0\n").replace(",1.5,1.0\n", ",1,0\n")},
            "a step whose computations take no time",
        ),
        ({"result": "[]"}, "result-a.json: step_t_nodelay: allowed: one number per name"),
        ({"result": "{"}, "result-a.json: not JSON"),
        ({"result": RESULT.replace("14.0}", "-1}", 1)}, "step_t_nodelay.7: -1; allowed: over 0"),
        ({"result": RESULT.replace('"7"', '"x"', 1)}, "step_t_nodelay: 'x'; allowed: numbers of s"),
        ({"result": RESULT.replace('"gc"', '"gd"')}, "kind 'gd' is not in the trace; known: "),
    ],
)
def test_a_file_of_a_job_that_says_nothing_of_it_is_named(
    tmp_path: Path, files: dict[str, str], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        held_against_published(job(tmp_path, **files), "a")


@pytest.mark.shared
@needs_traces
@pytest.mark.parametrize("name", ["ST", "AR"])
def test_two_recorded_jobs_lose_what_their_authors_say(name: str) -> None:
    """Each step, and every slow-down by kind, stage and replica, within 1%."""
    found, theirs = straggler_cost(read_recorded_job(SHARED, name)), published_cost(SHARED, name)

    for mine, other in ((found.steps_s, theirs.steps_s), (found.even_s, theirs.even_s)):
        assert mine == pytest.approx(other, rel=0.01)
    assert math.isclose(found.slowdown, theirs.slowdown, rel_tol=0.01)
    assert {what: dict(causes) for what, causes in theirs.causes.items()} == {
        what: pytest.approx(causes, rel=0.01) for what, causes in found.causes.items()
    }
