"""Bounds that no simulated step falls below."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from small_plans import CHANGES, FIXED, IDEAL, SCENARIO

from simulator.analysis.plan import training_bounds
from simulator.analysis.plan.training_bounds import TrainingBound, TrainingBounds
from simulator.analysis.plan.training_candidates import LayerFacts, candidates
from simulator.analysis.plan.training_layouts import axis_values
from simulator.analysis.run import metrics_of
from simulator.execution.optimizer import Rings
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.scenario.files import load_scenario
from simulator.scenario.training import OptimizerTypes
from simulator.workload.recorded import traces_in
from simulator.workload.sharding import HeldParameters, Parameters, Sharding

LARGER = (
    "cluster.nodes=8", "training.global_batch_sequences=256", "training.sequence_length=1024",
    "cluster.node.gpu.hbm_capacity=900 GiB",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fixed", "every"),
    [
        (CHANGES, FIXED, 9),
        ((*CHANGES, "training.blocking_sends=false", "training.gradient_reduction=overlapped"),
         FIXED, 19),
        (LARGER, {"pp": [1, 2, 4], "ep": [8, 32], "tp": [1, 2], "micro_batch": [1, 2]}, 300),
    ],
)  # fmt: skip
def test_no_bound_exceeds_what_is_simulated(changes, fixed, every, tmp_path, monkeypatch):
    # Layouts are those that shipped recordings are of, whatever a user has recorded beside.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scenario = load_scenario(SCENARIO, [*changes, *IDEAL])
    layers = LayerFacts(scenario, traces_in(None))
    found = candidates(layers, axis_values(scenario, fixed), Counter())[::every]
    bounds = TrainingBounds(layers).of(found)
    shares = {}
    for candidate, bound in zip(found, bounds, strict=True):
        texts = [f"{path}={json.dumps(value)}" for path, value in candidate.layout.settings.items()]
        try:
            step_s = metrics_of(SCENARIO, [*changes, *IDEAL, *texts])["step_time_s"]
        except ValueError:  # Memory that the bound does not see.
            continue
        shares[str(candidate.layout)] = bound.seconds / step_s
    assert len(shares) >= 5
    assert {layout: share for layout, share in shares.items() if share > 1} == {}


def test_a_step_is_bound_by_its_pipeline_and_what_follows_it():
    assert TrainingBound(None, 2.0, 0.5).seconds == 2.5


LAYER = HeldParameters(Parameters(1000, 600, 600, 650.0), Parameters(4000, 4000, 4000, 4100.0))


def sharded(zero):
    """Over eight copies of what all hold and two of experts."""
    return Sharding(
        zero, OptimizerTypes(), 8, 2, gathers_ahead=False, reduces_beside=False, pairs=False
    )


@pytest.mark.parametrize(
    ("zero", "traffic"),
    [
        # FP32 gradients read, scaled and written, BF16 weights written: 10 bytes a parameter that
        # is updated; 8 of master weights and moments, read and written; every gradient cleared; and
        # a norm of 4 bytes.
        (0, 5000 * 10 + 2 * 5000 * 8 + 5000 * 4 + 4),
        # An eighth of 1,000 and half of 4,000 are updated.
        (1, 2125 * 10 + 2 * 2125 * 8 + 5000 * 4 + 4),
        (2, 2125 * 10 + 2 * 2125 * 8 + 2125 * 4 + 4),
    ],
)
def test_an_update_is_bound_by_the_bytes_that_it_moves(zero, traffic):
    gpu = SimpleNamespace(hbm_bandwidth=2.0)
    node = SimpleNamespace(gpu=gpu)
    scenario = SimpleNamespace(cluster=SimpleNamespace(node=node))
    bounds = SimpleNamespace(layers=SimpleNamespace(scenario=scenario))
    assert TrainingBounds._update(bounds, sharded(zero), LAYER) == traffic / 2


@pytest.mark.parametrize(
    ("zero", "overlapped", "each"),
    [
        # All-reduce of FP32 gradients; a reduce-scatter, and a gather of BF16 weights.
        (0, (False, False), 2 * 4),
        (1, (False, False), 4 + 2),
        (1, (True, False), 2),
        (1, (False, True), 4),
        (2, (False, False), 2),
        (3, (False, False), 0),
    ],
)
def test_reduction_and_gather_are_bound_by_their_bytes_without_latency(zero, overlapped, each):
    def seconds(transfers, operation, size, *, experts):
        """3 s, and 1 s per byte of experts or per two bytes of what all hold."""
        return SimpleNamespace(seconds=np.array([1.0, 2.0 + size * (1.0 if experts else 0.5)]))

    group = SimpleNamespace(domains=2)
    rings = SimpleNamespace(dense=group, experts=group, seconds=seconds)
    bounds = SimpleNamespace(
        prices=SimpleNamespace(costs_of=lambda *_: SimpleNamespace(transfers_=None)),
        layers=SimpleNamespace(job=SimpleNamespace(state_overlapped=overlapped)),
    )
    candidate = SimpleNamespace(shape=None, parallel=None)
    found = TrainingBounds._collectives(bounds, candidate, rings, sharded(zero), LAYER)
    assert found == pytest.approx(each * (1000 * 0.5 + 4000), rel=1e-12)
    # What stays within a domain is left out.
    rings.dense = SimpleNamespace(domains=1)
    found = TrainingBounds._collectives(bounds, candidate, rings, sharded(zero), LAYER)
    assert found == pytest.approx(each * 4000, rel=1e-12)


@pytest.mark.parametrize(
    ("blocking", "parallel", "send_s", "sends"),
    [
        (False, {}, 0.0, 0),
        (True, {"pp": 1}, 0.0, 0),
        (True, {}, 40_960.0, 12),
        # Over NVLink, where stages share a domain.
        (True, {"stage_gpus": 4}, 10_240.0, 12),
        (True, {"axes": ("pipeline", "data")}, 10_240.0, 12),
    ],
)
def test_a_send_of_a_micro_batch_blocks_its_rank_over_what_reaches_the_next(
    blocking, parallel, send_s, sends
):
    """Two sequences of 4,096 tokens over 2 x 2 GPUs, 10 values of two bytes each: 40,960 bytes at
    1 B/s over NICs, 4 B/s otherwise. Six crossings, there and back."""

    def send(size, *, load):
        return SimpleNamespace(seconds=np.array(size / (1 if load is NO_LIMIT else 4)))

    costs = SimpleNamespace(transfers_=SimpleNamespace(send=send))
    bounds = SimpleNamespace(
        layers=SimpleNamespace(
            job=SimpleNamespace(blocking_sends=blocking, sequence_length=4096),
            scenario=SimpleNamespace(model=SimpleNamespace(hidden_size=10)),
        ),
        prices=SimpleNamespace(costs_of=lambda *_: costs),
        _made={},
    )
    stages = {"pp": 4, "stage_gpus": 8, "gpus_per_domain": 8, "axes": ("data", "pipeline")}
    candidate = SimpleNamespace(
        parallel=SimpleNamespace(**stages | parallel),
        shape=SimpleNamespace(micro_batch=2, cp=2, tp=2),
        facts=SimpleNamespace(crossings=6),
    )
    assert TrainingBounds._blocking(bounds, candidate) == (send_s, sends)


@pytest.mark.parametrize(
    ("zero", "rings", "state"),
    [
        (1, True, {}),
        (3, False, {}),
        (2, True, {"moe": (0.0, 120_000.0)}),
        (3, True, {"moe": (6000.0, 126_000.0)}),
    ],
)
def test_state_of_a_layer_is_gathered_before_its_work_and_reduced_after(zero, rings, state):
    """2,000 bytes of BF16 parameters and 8,000 of experts, FP32 gradients twice that; 1 s per byte
    that is gathered and 10 s that is reduced, of experts half."""

    class Links:
        def seconds(self, transfers, operation, size, *, experts):
            each = {"all_gather": 1.0, "reduce_scatter": 10.0}[operation]
            return SimpleNamespace(seconds=np.array([size * each * (0.5 if experts else 1.0)]))

    bounds = SimpleNamespace(
        prices=SimpleNamespace(costs_of=lambda *_: SimpleNamespace(transfers_=None)),
        layers=SimpleNamespace(held=lambda *_: {"moe": LAYER}),
        _rings=lambda _: Links() if rings else None,
        _made={},
    )
    candidate = SimpleNamespace(
        sharding=sharded(zero),
        shape=SimpleNamespace(tp=1),
        parallel=SimpleNamespace(local_experts=1),
    )
    assert TrainingBounds._state(bounds, candidate) == state


@pytest.mark.parametrize(
    ("beside", "forward", "backward"),
    [
        # Beside other layers only transfers take longer by state: 2 + 10, and 3 + 20.
        (True, 12.0, 23.0),
        # Else all does: a chain of 2.5 + 10, and 4 + 20 with combine.
        (False, 12.5, 24.0),
    ],
)
def test_state_lengthens_transfers_and_where_nothing_runs_beside_it_all_ways(
    beside, forward, backward, monkeypatch
):
    """A layer of 1 s of compute, 2 s of transfers and 2.5 s one after the other in forward; 1, 3,
    3.5 and 4 s in backward; 10 s of state before and 20 s after."""
    asked = []

    def pipeline_seconds(forward, backward, pairs, facts, **given):
        asked.append((forward, backward, pairs, given))
        return np.array([100.0])

    monkeypatch.setattr(training_bounds, "pipeline_seconds", pipeline_seconds)
    ways = ("compute", "transfers", "chain", "with_combine")
    pair = SimpleNamespace(
        forward=np.zeros((4, 1)), backward=np.zeros((4, 1)), more=np.zeros((4, 1)),
        ends=np.zeros((4, 1)),
    )  # fmt: skip
    of_layer = SimpleNamespace(
        forward=SimpleNamespace(**dict(zip(ways, np.array([[1.0], [2.0], [2.5]]), strict=False))),
        backward=SimpleNamespace(
            **dict(zip(ways, np.array([[1.0], [3.0], [3.5], [4.0]]), strict=True))
        ),
        pair=pair,
    )
    bounds = SimpleNamespace(
        layers=SimpleNamespace(
            layers=("moe", "moe"),
            usual=("moe",),
            job=SimpleNamespace(
                gap=SimpleNamespace(value=0.1), optimizer=SimpleNamespace(post_validation=False)
            ),
        ),
        prices=SimpleNamespace(of=lambda shapes, kinds: {"moe": of_layer}),
        _states=lambda *_: np.array([[[10.0], [20.0]]]),
        _besides=lambda _: np.array([[beside], [beside]]),
        _blocking=lambda _: (0.5, 6),
        _optimizer=lambda _: 7.0,
    )
    candidate = SimpleNamespace(shape="s", parallel="p", facts="f", fullest=3, layout="layout")
    (bound,) = TrainingBounds.of(bounds, [candidate])
    ((found_forward, found_backward, pairs, given),) = asked
    assert (found_forward.tolist(), found_backward.tolist()) == ([[forward]], [[backward]])
    assert pairs.forward[training_bounds.TRANSFERS].tolist() == [[10.0]]
    assert pairs.backward[training_bounds.TRANSFERS].tolist() == [[20.0]]
    assert (given["fullest"], given["send"], given["sends"]) == ([3.0], [0.5], [6.0])
    assert (given["counts"], given["usual"], given["gap"]) == ([2], 0, 0.1)
    assert bound == TrainingBound("layout", 100.0, 7.0)


def test_state_of_layouts_is_that_of_each_kind_and_none_where_nothing_is_known():
    state = {"moe": (1.0, 2.0), "dense": (3.0, 4.0)}
    bounds = SimpleNamespace(_state=lambda candidate: candidate)
    found = TrainingBounds._states(bounds, [{}, state], ("dense", "moe"))
    assert found.tolist() == [[[0.0, 3.0], [0.0, 4.0]], [[0.0, 1.0], [0.0, 2.0]]]


@pytest.mark.parametrize(("rings", "each"), [("rings", 0.5 + 2.0), (None, 0.5)])
def test_the_optimizer_of_a_rank_is_its_share_of_that_of_all_layers(rings, each):
    """Two directions over eight ranks: a quarter of a dense and two other layers of 5,000
    parameters, half a second for each parameter to update and two to exchange."""
    bounds = SimpleNamespace(
        layers=SimpleNamespace(
            held=lambda *_: {"dense": LAYER, "moe": LAYER}, layers=("dense", "moe", "moe")
        ),
        _rings=lambda _: rings,
        _update=lambda sharding, whole: 0.5 * whole.every.count,
        _collectives=lambda candidate, rings, sharding, whole: 2.0 * whole.every.count,
        _made={},
    )
    candidate = SimpleNamespace(
        sharding=None,
        shape=SimpleNamespace(tp=1, etp=1),
        parallel=SimpleNamespace(local_experts=1),
        layout=SimpleNamespace(pp=8),
        facts=SimpleNamespace(schedule=SimpleNamespace(directions=2)),
    )
    assert TrainingBounds._optimizer(bounds, candidate) == 15_000 * each / 4


@pytest.mark.parametrize(
    ("parallel", "known"),
    [({}, True), ({"stage_gpus": 4}, False), ({"axes": ("pipeline", "data")}, False)],
)
def test_rings_are_known_where_every_stage_fills_its_domains(parallel, known, monkeypatch):
    given = {"stage_gpus": 16, "gpus_per_domain": 8, "axes": ("data", "pipeline")}
    monkeypatch.setattr(
        training_bounds, "copies_of", lambda parallel, holders, *, experts: (holders, experts)
    )
    candidate = SimpleNamespace(
        parallel=SimpleNamespace(**given | parallel), facts=SimpleNamespace(holders=3)
    )
    found = TrainingBounds._rings(SimpleNamespace(_made={}), candidate)
    assert found == (Rings((3, False), (3, True), NO_LIMIT, NO_LIMIT) if known else None)
