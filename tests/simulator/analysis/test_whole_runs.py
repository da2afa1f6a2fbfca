"""Whole steps beside the same ones simulated."""

from dataclasses import replace
from math import log, sqrt

import pytest

from hardware_profiles.tables import Measurement
from simulator.analysis import whole_runs
from simulator.analysis.whole_runs import (
    SAME_KIND,
    TABLES,
    Comparison,
    Predicted,
    comparisons,
    gpu_of,
    kernel_group,
    leases,
    planned,
    predict,
    probe,
    probe_leases,
    read_steps,
    scenario_of,
    sustained_clock,
)


@pytest.fixture(scope="module")
def steps():
    found = read_steps(TABLES / "h200_sxm_1.csv")
    return {step.label: step for step in found}


def test_a_lease_is_named_after_its_gpu_and_holds_the_steps_that_were_planned(steps):
    assert {"h100_sxm_1", "h200_sxm_1"} <= set(leases())
    assert gpu_of("h200_sxm_1") == "h200_sxm"
    assert set(leases()) - set(leases("train_step")) == {"h200_sxm_4"}  # decode alone
    trained_and_decoded = {"h100_sxm_4", "h200_sxm_4", "h200_sxm_5", "h200_sxm_6", "h200_sxm_8"}
    assert set(leases()) - set(leases("prefill")) == trained_and_decoded
    assert len(steps) == 22
    every = planned("h200_sxm_1")
    assert len(every) == 16
    assert {step.label for step in every} >= {s for s in steps if s.endswith("graph")}


def test_a_training_step_becomes_a_scenario_of_its_own_sizes(steps):
    step = steps["train_microbatch off_the_grid 1 x 3000 eager"]
    scenario = scenario_of(step, "h200_sxm_1")
    job = scenario.job
    assert (job.pp, job.ep, job.sequence_length, job.micro_batch_sequences) == (1, 1, 3000, 1)
    assert scenario.model.hidden_size == 5120
    assert scenario.cluster.gpus == 1
    assert scenario.calibration.measurements == ("whole/h200_sxm_1_operators",)
    # 73.64 ms for 388 operators.
    assert job.host_launch == pytest.approx(0.07364 / 388)
    assert job.gap.value == 0.0


def test_serving_steps_become_scenarios_of_their_own_sizes(steps):
    decode = scenario_of(steps["decode_step four_layers 64 x 4096 graph"], "h200_sxm_1")
    requests = decode.job.requests
    assert (requests.requests_per_gpu, requests.context_tokens) == (64, 4096)
    assert decode.job.host_launch == 0.0
    pass_ = replace(steps["prefill four_layers 1 x 4096 graph"], sequences=2, context=2048)
    requests = scenario_of(pass_, "h200_sxm_1").job.requests
    assert (requests.tokens_per_gpu, requests.prompt_tokens) == (4096, 2048)


def test_another_gpus_operators_are_restated_and_its_shipped_tables_stand_beside(steps):
    step = steps["prefill four_layers 1 x 4096 graph"]
    calibration = scenario_of(step, "h100_sxm_1", operators_only=False).calibration
    assert calibration.gpu == "h100_sxm"
    assert calibration.restatement == calibration.other_gpu
    own = scenario_of(step, "h200_sxm_1", operators_only=False).calibration
    assert own.restatement != own.other_gpu
    assert own.measurements[:2] == ("whole/h200_sxm_1_operators", "h200_sxm_reference")


@pytest.mark.parametrize(
    ("lease", "label", "error"),
    [
        ("h100_sxm_3", "decode_step four_layers 16 x 2048 graph", -0.0027),
        ("h100_sxm_3", "decode_step four_layers 16 x 4096 graph", -0.0041),
        ("h100_sxm_3", "decode_step off_the_grid 96 x 6000 graph", -0.0026),
        ("h100_sxm_4", "decode_step four_layers 16 x 4096 graph", -0.0118),
        ("h200_sxm_5", "decode_step four_layers 16 x 2048 graph", -0.0103),
        ("h200_sxm_5", "decode_step four_layers 16 x 4096 graph", -0.0035),
        ("h200_sxm_7", "decode_step four_layers 128 x 4096 graph", 0.0102),
        ("h200_sxm_7", "decode_step many_experts 48 x 3000 graph", -0.0185),
        ("h200_sxm_7", "decode_step off_the_grid 96 x 6000 graph", -0.0165),
    ],
)
def test_a_decode_step_is_simulated_from_operators_timed_where_they_stand_in_it(
    lease, label, error
):
    """The aim is 4%. From bursts of the same lease the first is 6% too fast."""
    (step,) = (s for s in read_steps(TABLES / f"{lease}.csv") if s.label == label)
    simulated = predict(scenario_of(step, lease))
    assert simulated.seconds / step.seconds - 1 == pytest.approx(error, abs=2e-4)


@pytest.mark.parametrize(
    ("lease", "label", "error"),
    [
        ("h200_sxm_6", "train_step four_layers 1 x 4096 graph", 0.0132),
        ("h200_sxm_6", "train_step four_layers 1 x 4096 eager", 0.0049),
        ("h200_sxm_6", "train_microbatch four_layers 1 x 4096 graph", -0.0077),
        ("h200_sxm_7", "train_step four_layers 1 x 4096 graph", 0.0081),
        ("h200_sxm_7", "train_microbatch off_the_grid 1 x 3000 graph", -0.0061),
        ("h200_sxm_7", "prefill many_experts 2 x 2048 graph", -0.0377),
        ("h200_sxm_8", "train_microbatch four_layers 1 x 4096 eager", 0.0215),
        ("h200_sxm_8", "train_microbatch many_experts 1 x 4096 eager", 0.0093),
        ("h200_sxm_8", "train_microbatch off_the_grid 1 x 3000 eager", 0.0093),
    ],
)
def test_a_step_of_much_work_is_simulated_from_operators_of_its_lease(lease, label, error):
    """The aim is 3%, which was predicted before the leases; one prefill misses it."""
    (step,) = (s for s in read_steps(TABLES / f"{lease}.csv") if s.label == label)
    simulated = predict(scenario_of(step, step.lease), optimizer=step.job == "train_step")
    assert simulated.seconds / step.seconds - 1 == pytest.approx(error, abs=2e-4)


def test_a_lease_timed_in_bursts_alone_tells_the_clock_of_its_steps():
    """Training from a graph at 1.725, 1.68 and 1.845 GHz; the highest clock is 1.98."""
    clock = sustained_clock("h200_sxm_1", "train_microbatch")
    assert clock.value == pytest.approx(1.725 / 1.98)
    assert (clock.low, clock.high) == (pytest.approx(1.68 / 1.98), pytest.approx(1.845 / 1.98))
    # A whole step's is that of its micro-batches, a decode step's its own.
    assert sustained_clock("h200_sxm_1", "train_step") == clock
    decode = sustained_clock("h200_sxm_1", "decode_step")
    assert decode.source.startswith("own measurement: SM clock of decode_step steps")


def test_a_lease_that_trained_without_a_graph_tells_the_clock_of_that():
    """At 1.815, 1.8 and 1.935 GHz."""
    clock = sustained_clock("h200_sxm_5", "train_microbatch")
    assert clock is not None
    assert clock.value == pytest.approx(1.815 / 1.98)


def test_a_decode_step_is_the_sum_of_its_operators_and_lies_near_the_measured_one(steps):
    step = steps["decode_step four_layers 128 x 4096 graph"]
    said = predict(scenario_of(step, step.lease))
    assert sum(said.families.values()) == pytest.approx(said.seconds)
    assert said.families[whole_runs.REST] == pytest.approx(0.0, abs=1e-12)
    assert said.seconds == pytest.approx(step.seconds, rel=0.04)
    wider = predict(scenario_of(step, step.lease), spread=SAME_KIND)
    assert wider.low < said.seconds / 1.05 < said.low
    assert wider.high > said.seconds * 1.05 > said.high
    # The spread between two GPUs comes on top as an error of its own.
    for ends, between in (
        ((said.seconds / said.low, said.seconds / wider.low), SAME_KIND.value / SAME_KIND.low),
        ((said.high / said.seconds, wider.high / said.seconds), SAME_KIND.high / SAME_KIND.value),
    ):
        own, both = (log(end) for end in ends)
        assert both == pytest.approx(sqrt(own**2 + log(between) ** 2), rel=1e-12)


def test_a_host_that_launches_slowly_makes_the_step(steps):
    """26 ms for 114 operators against 1.5 ms of kernels: the step is the host's time."""
    step = replace(
        steps["decode_step four_layers 16 x 2048 eager"], host_seconds=0.026, operators=114
    )
    assert predict(scenario_of(step, step.lease)).seconds == pytest.approx(0.026)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("gemm", "products"),
        ("batched_gemm", "products"),
        ("masked_grouped_gemm", "expert products"),
        ("grouped_gemm_weight_grad", "expert products"),
        ("attention_backward", "attention"),
        ("mla_decode", "attention"),
        ("sparse_mla", "attention"),
        ("index_scores", "attention"),
        ("index_topk", "memory-bound"),
        ("attention_backward_preprocess", "memory-bound"),
        ("rmsnorm", "memory-bound"),
        ("optimizer", "optimizer"),
    ],
)
def test_every_kind_of_operator_has_a_family(kind, family):
    assert kernel_group(kind) == family


def test_errors_are_split_before_they_are_summed(steps):
    """Another device's products take 3 ms too long and its attention 1 ms too little; the same
    lease's sum falls short by 1 ms: 1 ms of 5 is left."""
    step = replace(steps["prefill four_layers 1 x 4096 graph"], seconds=0.010)
    same = Predicted(0.009, 0.008, 0.011, {"products": 0.005, "attention": 0.004})
    other = Predicted(0.011, 0.0105, 0.012, {"products": 0.008, "attention": 0.003})
    found = Comparison(step, same, "h100_sxm_1", other)
    assert found.errors == {
        "products": pytest.approx(0.003),
        "attention": pytest.approx(-0.001),
        "composition": pytest.approx(-0.001),
    }
    assert found.left == pytest.approx(0.001 / 0.005)
    assert found.composition_error == pytest.approx(-0.1)
    assert found.other_error == pytest.approx(0.1)
    assert not found.inside


def timed(kind, burst, turn):
    """An operator of a kind in bursts and in the turns of a training step."""
    common = {"set": "dsv3sim_mixed"}
    turns = common | {"state": "sustained", "job": "train_microbatch"}
    return [
        Measurement(
            kind, (("columns", 8), ("rows", 64)), "bfloat16", 132, seconds, 0.0, "a test",
            tuple(sorted(conditions.items())),
        )
        for seconds, conditions in ((burst, common), (turn, turns))
    ]  # fmt: skip


def test_the_optimizer_is_part_of_a_training_step_alone(steps, monkeypatch):
    asked = []
    monkeypatch.setattr(whole_runs, "predict", lambda *_, optimizer: asked.append(optimizer))
    for job in ("train_step", "train_microbatch"):
        assert whole_runs.compare_step(steps[f"{job} four_layers 1 x 4096 graph"], ()) == []
    assert asked == [True, False]


def test_five_operators_tell_kernels_from_clocks(monkeypatch):
    """Bursts of the other device take 10% longer, turns 32%: a factor of 1.2 is the clock's. The
    sixth kind of operator, the shortest, does not count."""
    kinds = ("gemm", "copy", "cast", "scale", "add", "concat")
    turns = (10.0, 9.0, 8.0, 7.0, 6.0, 5.0)
    own = [row for kind, turn in zip(kinds, turns, strict=True) for row in timed(kind, 1.0, turn)]
    other = [
        row
        for kind, turn in zip(kinds[:5], turns[:5], strict=True)
        for row in timed(kind, 1.1, 1.32 * turn)
    ]
    found = probe(own, other + timed("concat", 9.0, 9.0))
    assert found.kernels == pytest.approx(0.1)
    assert found.clock == pytest.approx(0.2)
    assert found.operators[0] == "gemm columns=8;rows=64"
    assert probe(own, other[:8]) is None
    tables = {
        TABLES / "one_operators.csv": own,
        TABLES / "two_operators.csv": other + timed("concat", 9.0, 9.0),
    }
    monkeypatch.setattr(whole_runs, "load_measurements", tables.__getitem__)
    assert probe_leases("one", "two") == found


def test_every_step_of_a_lease_is_compared_with_the_operators_of_each_other_lease(
    steps, monkeypatch
):
    told = []
    monkeypatch.setattr(whole_runs, "compare_step", lambda step, others: [(step.label, others)])
    found = comparisons("h200_sxm_1", lambda far: told.append((far.share, far.count)))
    assert found == [
        (label, [lease for lease in leases(step.job) if lease != "h200_sxm_1"])
        for label, step in steps.items()
    ]
    assert told == [(done / len(steps), done) for done in range(len(steps))]
