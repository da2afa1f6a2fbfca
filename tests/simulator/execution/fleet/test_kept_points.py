"""Times of iterations that a fleet keeps for the next process: the same to the last bit."""

from dataclasses import replace

import pytest

from simulator.analysis.run import simulate
from simulator.execution.fleet import kept_points, simulation
from simulator.execution.fleet.kept_points import points_digest, read_points, write_points
from simulator.execution.fleet.simulation import prepare_fleet
from simulator.execution.serving_step import iteration
from simulator.scenario.files import load_scenario

POINTS = {("seconds", 8, 512): 0.1 + 0.2, ("more", 8, 512): 1 / 3, ("seconds", 16, 64): 5e-324}
SHORT = ("requests.limit=20", "warm_up=0 s")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the user's files lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dsv3sim" / "fleet_points"


@pytest.fixture(scope="module")
def models():
    return prepare_fleet(load_scenario("azure_code")).models


def test_times_of_a_deployment_read_back_to_the_last_bit(folder, models):
    decode, prefill = models["decode"], models["prefill"]
    assert read_points(decode) == {}
    write_points(decode, POINTS)
    assert read_points(decode) == POINTS
    assert read_points(prefill) == {}
    (kept,) = folder.iterdir()
    written = kept.stat().st_mtime_ns
    write_points(decode, POINTS)
    assert kept.stat().st_mtime_ns == written


def test_anything_else_that_a_deployment_is_made_of_is_another_file(models, monkeypatch, tmp_path):
    model = models["decode"]
    known = points_digest(model)
    assert points_digest(replace(model, graph=models["prefill"].graph)) == known
    rows = model.job.skew.rows
    popularity = tmp_path / "rows.csv"

    def of_job(**changes):
        return replace(model, job=model.job.model_copy(update=changes))

    def of_file(text):
        popularity.write_text(text)
        named = rows.model_copy(update={"zipf_exponent": None, "file": str(popularity)})
        return of_job(skew=model.job.skew.model_copy(update={"rows": named}))

    others = [
        points_digest(other)
        for other in (
            of_job(communication_sms=1),
            replace(model, seed=model.seed + 1),
            replace(model, trace=models["prefill"].trace),
            replace(model, config=replace(model.config, n_group=1)),
            replace(model, cluster=model.cluster.model_copy(update={"gpu_price": 1e-9})),
        )
    ]
    others += [points_digest(of_file(text)) for text in ("a", "b")]
    monkeypatch.setattr(kept_points, "_code_digest", lambda: "other code")
    others.append(points_digest(model))
    assert len({known, *others}) == 9


@pytest.mark.parametrize("name", ["azure_code", "mooncake_conversation"])
def test_a_fleet_that_has_run_before_works_out_no_iteration(name, monkeypatch):
    worked_out = []

    def counted(load):
        worked_out.append((load.model.job.phase, load.batches[0]))
        return iteration(load)

    monkeypatch.setattr(simulation, "iteration", counted)
    first = simulate(load_scenario(name, SHORT))
    metrics = first.quick_metrics
    assert worked_out
    assert len(worked_out) == len(set(worked_out))
    first.keep_kernel_times()
    worked_out.clear()
    assert simulate(load_scenario(name, SHORT)).quick_metrics == metrics
    assert worked_out == []
