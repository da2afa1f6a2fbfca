"""What the blocks of a serving iteration take, by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.execution import serving_blocks
from simulator.execution.serving_blocks import CORES, NODES, _Kernels, row_ratios
from simulator.workload.task_graph import Stream
from tests.cost_models import operator
from tests.simulator.execution.test_serving_draws import ALIKE, step_of


def test_the_share_of_a_block_that_goes_with_the_clock_is_that_of_its_tasks_by_their_time():
    """Tasks of experts of 2 and 6 s, a half and a quarter of which go with the clock: 2.5 of 8."""
    kernel = SimpleNamespace(kind="masked_grouped_gemm")
    kernels = SimpleNamespace(
        _gap=np.array([0.5]),
        _ratios={0: np.array([1.0, 2.0, 0.1]), 1: np.array([1.0, 3.0, 0.1])},
        _scaled=np.array([[2.0], [6.0]]),
        _clocked=np.array([0.5, 0.25]),
        _step=SimpleNamespace(
            log=SimpleNamespace(graph=SimpleNamespace(operators=[kernel, kernel]))
        ),
        varies=lambda task: True,
    )
    block = [
        SimpleNamespace(
            operator=n, barrier=False, part="experts", collective=False, stream=Stream.COMPUTE
        )
        for n in range(2)
    ]
    found = _Kernels.kind(kernels, block)
    assert found.of_rows.tolist() == [[8.0], [22.0]]
    assert found.rows_clocked.tolist() == [2.5 / 8]
    assert found.fixed.tolist() == [0.5]


def test_experts_take_what_their_rows_and_those_that_have_any_take(monkeypatch):
    """40 rows in the step, 1.25 of the mean: 32 are the mean. A kernel takes 1 s for each row and
    100 s for each expert, another 1 s for each expert, a third what is left of 40 rows; an expert
    more has rows for every 6.4."""
    monkeypatch.setattr(serving_blocks, "slot_shares", lambda _: 6.4)
    monkeypatch.setattr(serving_blocks, "distinct_slots", lambda shares, rows: rows / shares)

    def expert_times(model, base, asked, wanted):
        assert (base.parts, wanted) == (layer.parts, [3, 8, 9])
        return np.array(
            [[rows + 100 * active, active, 40 - rows] for rows, active in asked.tolist()]
        )

    monkeypatch.setattr(serving_blocks, "expert_times", expert_times)
    layer = SimpleNamespace(
        parts={"experts": (3,)},
        operators=dict.fromkeys((3, 8, 9), operator("swiglu", rows=40)),
        part_of=lambda: {9: "experts", 8: "experts", 3: "experts", 5: "attention"},
    )
    step = SimpleNamespace(
        model=SimpleNamespace(even_skew=1.25, slot_shares=6.4), operators={("moe", 0): layer}
    )
    found = row_ratios(step, "moe", np.array([0.0, 0.5, 1.25]))
    # One row at least; 16 rows; 40 rows as in the step; and with next to none one row again.
    rows, active = np.array([1, 16, 40, 1]), np.array([1, 16, 40, 1]) / 6.4
    assert found[3] == pytest.approx((rows + 100 * active) / (40 + 100 * 6.25), rel=1e-12)
    assert found[8] == pytest.approx(active / 6.25, rel=1e-12)
    # Of nothing in the step, seconds stand in the place of a ratio.
    assert found[9].tolist() == (40 - rows).tolist()


def test_what_goes_with_rows_is_worked_out_once_for_all_contexts():
    step, longer = (
        step_of("decode_ep8_h200", f"requests.context_tokens={context}") for context in (4096, 8192)
    )
    longer = replace(longer, model=step.model)
    rows = np.linspace(0.5, 2.0, NODES)
    known = row_ratios(step, "moe", rows)
    assert row_ratios(longer, "moe", rows) is known
    assert row_ratios(longer, "moe", 2 * rows) is not known


def test_a_transfer_that_takes_as_long_at_any_rows_is_not_looked_up_by_them():
    """2 s at both nodes; one of 2 and 3 s is looked up."""
    scaled = np.array([[2.0]])
    operators = [SimpleNamespace(kind="dispatch_layout")]
    wire = SimpleNamespace(
        operator=0, collective=True, barrier=True, part="dispatch_wire", micro_batch=0,
        stream=Stream.COMMUNICATION,
    )  # fmt: skip
    found = []
    for ratios in ([1.0, 1.0, 0.5], [1.0, 1.5, 0.5]):
        kernels = SimpleNamespace(
            _gap=np.array([0.5]),
            _ratios={0: np.array(ratios)},
            _scaled=scaled,
            _clocked=np.array([0.0]),
            _step=SimpleNamespace(log=SimpleNamespace(graph=SimpleNamespace(operators=operators))),
            varies=lambda task: True,
        )
        found.append(_Kernels.kind(kernels, [wire]))
    same, other = found
    assert (same.fixed.tolist(), same.of_rows) == ([2.0], None)
    assert (other.fixed.tolist(), other.of_rows.tolist()) == ([0.0], [[2.0], [3.0]])


def test_kernels_of_experts_are_priced_from_the_fewest_rows_to_the_most(monkeypatch):
    step = step_of("decode_ep8_h200")
    nodes = []
    kernels = SimpleNamespace(kind=lambda block: block)
    monkeypatch.setattr(
        serving_blocks,
        "_Kernels",
        lambda step, scaled, gap, rows, spread: nodes.append(rows) or kernels,
    )
    rows = [[np.array([0.5, 1.0])], [np.array([2.0]), np.array([4.5])]]
    gap = np.array([1.5])
    found = serving_blocks.serving_blocks(step, None, gap, rows)
    assert nodes[0].tolist() == np.linspace(0.5, 4.5, NODES).tolist()
    assert (found.fewest, found.nodes_per_row) == (0.5, 32 / 4)
    assert found.gap_s.tolist() == [1.5]
    found = serving_blocks.serving_blocks(step, None, gap, [])
    assert found.fewest == 1.0
    assert nodes[1] == pytest.approx(np.ones(NODES), rel=1e-5)


def test_tasks_wait_for_the_group_that_shares_heads_or_for_all_ranks():
    def meeting(collective, part, segment):
        task = SimpleNamespace(collective=collective, operator=0, part=part)
        operator = SimpleNamespace(segment=segment, sizes=(("ranks", 4),), name="x", kind="y")
        graph = SimpleNamespace(operators=(operator,))
        return serving_blocks.meets(graph, SimpleNamespace(attention=4), task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_blocks, "collective_ranks", lambda operator, split: 4)
        segment = next(iter(serving_blocks.COLLECTIVE_SEGMENTS))
        assert meeting(False, "attention_0", segment) == ()
        assert meeting(True, "attention_0", segment) == (0,)
        assert meeting(True, "dispatch_wire", segment) == (0, 1)
        assert meeting(True, "attention_0", "moe") == (0, 1)
        patch.setattr(serving_blocks, "collective_ranks", lambda operator, split: 8)
        assert meeting(True, "attention_0", segment) == (0, 1)


def test_a_block_sums_what_goes_with_clock_and_work_and_what_does_not():
    """Two kernels of 2 s, half of which goes with the clock, a core of 4 s, a quarter, and a
    collective of 8 s, with a gap of 0.5 s between each two."""
    operators = [SimpleNamespace(kind=kind) for kind in ("gemm", "mla_decode", "copy")]
    kernels = SimpleNamespace(
        _gap=np.array([0.5]),
        _scaled=np.array([[2.0], [4.0], [8.0]]),
        _clocked=np.array([0.5, 0.25, 0.0]),
        _step=SimpleNamespace(log=SimpleNamespace(graph=SimpleNamespace(operators=operators))),
        varies=lambda task: False,
    )
    block = [
        SimpleNamespace(operator=n, collective=n == 2, micro_batch=3, stream=Stream.COMPUTE)
        for n in (0, 1, 2, 0)
    ]
    found = _Kernels.kind(kernels, block)
    names = ("fixed", "plain", "clocked", "cores", "cores_clocked", "rows_clocked")
    assert [getattr(found, name).item() for name in names] == [3 * 0.5 + 8, 4, 2, 4, 1, 0]
    assert (found.micro_batch, found.on_sms, found.of_rows, found.sends) == (3, True, None, None)


def test_copies_leave_in_the_time_of_next_to_no_rows():
    operators = [SimpleNamespace(kind="copy")]
    kernels = SimpleNamespace(
        _gap=np.array([0.5]),
        _ratios={0: np.array([1.0, 2.0, 0.1])},
        _scaled=np.array([[4.0]]),
        _clocked=np.array([0.0]),
        _step=SimpleNamespace(log=SimpleNamespace(graph=SimpleNamespace(operators=operators))),
        varies=lambda task: True,
    )
    wire = SimpleNamespace(
        operator=0, collective=True, barrier=False, part="dispatch_wire", micro_batch=0,
        stream=Stream.COMMUNICATION,
    )  # fmt: skip
    found = _Kernels.kind(kernels, [wire])
    assert found.micro_batch == -1
    assert (found.of_rows.tolist(), found.sends.tolist()) == ([[4.0], [8.0]], [np.float32(0.4)])
    assert _Kernels.kind(kernels, [SimpleNamespace(**vars(wire) | {"barrier": True})]).sends is None


@pytest.mark.parametrize("spread", [False, True])
def test_kernels_go_with_rows_where_experts_are_spread_in_each_layer_that_has_any(
    monkeypatch, spread
):
    """A step without prediction modules, whose second micro-batch begins ten operators later, on
    132 SMs less 20 for communication."""
    asked = []

    def clocked_shares(operators, seconds, *, sms):
        asked.append((operators, seconds, sms))
        return "shares"

    monkeypatch.setattr(serving_blocks, "section_starts", lambda _: {("moe", 0): 5, ("moe", 1): 15})
    monkeypatch.setattr(serving_blocks, "row_ratios", lambda step, kind, rows: {2: kind, 4: rows})
    model = SimpleNamespace(
        job=SimpleNamespace(micro_batches=2, communication_sms=20),
        cluster=SimpleNamespace(node=SimpleNamespace(gpu=SimpleNamespace(sms=132))),
        kernels=SimpleNamespace(costs=SimpleNamespace(clocked_shares=clocked_shares)),
    )
    step = SimpleNamespace(
        model=model,
        operators={("moe", 0): None, ("moe", 1): None},
        log=SimpleNamespace(graph=SimpleNamespace(operators=("a", "b"))),
        times=SimpleNamespace(seconds="seconds"),
    )
    kernels = _Kernels(step, None, None, "rows", spread)
    ratios = {7: "moe", 9: "rows", 17: "moe", 19: "rows"} if spread else {}
    assert (kernels._ratios, kernels._clocked) == (ratios, "shares")
    assert asked == [(("a", "b"), "seconds", [112, 112])]


def test_a_lower_clock_slows_the_share_of_attentions_core_that_goes_with_it():
    """Two of 3 s each make 6 s."""
    step = step_of("decode_tp8_h200", ALIKE)
    operators = step.log.graph.operators
    core = next(task for task in step.log.graph.tasks if operators[task.operator].kind in CORES)
    scaled, gap = np.full((len(operators), 2), 3.0), np.zeros(2)
    kernels = _Kernels(step, scaled, gap, np.ones(NODES), spread=False)
    share = float(kernels._clocked[core.operator])
    assert 0 < share <= 1
    found = kernels.kind([core, core])
    assert found.cores.tolist() == [6.0, 6.0]
    assert found.cores_clocked.tolist() == pytest.approx([6 * share] * 2)
