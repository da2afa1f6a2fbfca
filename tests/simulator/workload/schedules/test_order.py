"""Where chunks run, and what actions wait for."""

from dataclasses import replace

from reference_model.pipeline_actions import Chunk, parse_action
from simulator.workload.schedules.bidirectional import dualpipe
from simulator.workload.schedules.one_f_one_b import one_f_one_b
from simulator.workload.schedules.order import Schedule


def test_chunks_of_the_two_directions_run_on_mirrored_ranks() -> None:
    schedule = dualpipe(4, 8)
    assert schedule.rank_of(Chunk("F", 1, 3)) == 1
    assert schedule.rank_of(Chunk("F", 1, 4)) == 2


def test_the_order_in_which_actions_can_run_says_what_each_needs_and_sends() -> None:
    """Two ranks, one micro-batch: forward down, backward up."""
    schedule = one_f_one_b(2, 1)
    texts = ("0F0", "0B0"), ("1F0", "1B0")
    assert schedule.actions == tuple(tuple(map(parse_action, row)) for row in texts)
    order = schedule.run_order
    # Rows 0 and 1 are rank 0's F and B, 2 and 3 those of rank 1.
    assert order.sends == ((0, (1,)), (1, ()), (1, (0,)), (0, ()))
    assert order.steps == (
        (0, 0, (), 0),
        (2, 1, ((0, 0),), 1),
        (3, 1, (), 2),
        (1, 0, ((3, 2),), 3),
    )
    assert order.blocked == {}


def test_actions_are_alike_that_differ_in_their_micro_batches_alone() -> None:
    """Two ranks, two micro-batches: F F B B on rank 0, F B F B on rank 1."""
    alike = one_f_one_b(2, 2).alike
    firsts = ((0, "0F0"), (0, "0B0"), (1, "1F0"), (1, "1B0"))
    assert alike.firsts == tuple((rank, parse_action(text)) for rank, text in firsts)
    assert alike.places == (0, 0, 1, 1, 2, 3, 2, 3)


def test_an_order_stops_at_actions_that_can_never_run() -> None:
    stuck = Schedule("stuck", 1, ((0, 1),), ((parse_action("0F0"),), (parse_action("1B0"),)))
    waiting = replace(stuck, actions=((parse_action("0B0"),), (parse_action("1B0"),)))
    assert [step[:2] for step in stuck.run_order.steps] == [(0, 0), (1, 1)]
    assert waiting.run_order.blocked == {}
    crossed = replace(
        stuck, actions=((parse_action("0B0"), parse_action("0F0")), (parse_action("1B0"),))
    )
    assert crossed.run_order.blocked == {0: 0}
