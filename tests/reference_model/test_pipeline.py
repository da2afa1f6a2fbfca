"""The schedules that are simulated can be executed: gradients equal those of one rank."""

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.pipeline import check_pipeline, lanes, parse_order
from reference_model.pipeline_actions import Chunk
from reference_model.precision import Recipe
from simulator.workload.schedules.grid import render_grid
from simulator.workload.schedules.held import peak_in_flight
from simulator.workload.schedules.known import SCHEDULES

DEBUG = load_model_config("debug")


def order_of(schedule):
    return parse_order(render_grid(schedule), source=schedule.name)


def check(order, **changes):
    arguments = {
        "recipe": Recipe("float32", "reference"), "sequences": 1, "context": 16, "seed": 0,
        "backend": "gloo", "timeout_s": 120.0,
    }  # fmt: skip
    return check_pipeline(order, DEBUG, **(arguments | changes))


@pytest.mark.parametrize(
    ("name", "ranks", "microbatches"),
    [("dualpipe", 4, 8), ("dualpipev", 2, 4), ("zb_h1", 2, 2), ("interleaved_overlapped", 2, 3)],
)
def test_a_step_in_the_order_of_a_schedule_has_the_gradients_of_a_serial_one(
    name, ranks, microbatches
):
    schedule = SCHEDULES[name](ranks, microbatches)
    result = check(order_of(schedule))
    assert result.losses == pytest.approx(result.serial_losses, rel=1e-6)
    assert result.largest_gradient_error < 1e-5
    assert result.weights > 60
    # What the simulator charges as activation memory is what the ranks really hold.
    assert tuple(result.most_held) == peak_in_flight(schedule)


def test_an_order_is_read_back_as_the_schedule_has_it():
    schedule = SCHEDULES["dualpipe"](4, 10)
    order = order_of(schedule)
    assert (order.stages, order.microbatches) == (4, 10)
    assert order.ranks == schedule.actions


def test_an_order_that_waits_in_a_circle_ends_in_time():
    """Stage 0 wants the gradient of micro-batch 1 first, stage 1 its forward of micro-batch 0."""
    order = parse_order("0F1 0B1 0F0 0B0\n1F0 1B0 1F1 1B1", source="circle")
    with pytest.raises(ValueError, match="the order was not performed within 5 s"):
        check(order, timeout_s=5.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "test: holds no action"),
        ("rank 0 | 0F0 0X0", "test, line 1: action '0X0': must be stage"),
        ("0F0", r"stage 0 of micro-batch 0 has \[\('F', 0\)\]; allowed: F and B"),
        ("0F0 0B0 0F1", "stage 0 of micro-batch 1"),
        ("0F0\n0B0", "on one rank"),
        ("0F0 2F0 0B0 2B0", "stage 1 of micro-batch 0 has nothing"),
    ],
)
def test_orders_that_are_not_a_step_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_order(text, source="test")


def test_more_stages_than_layers_are_refused():
    order = order_of(SCHEDULES["1f1b"](8, 8))
    with pytest.raises(ValueError, match="8 stages, the model only 4 layers"):
        check(order)


def test_lanes_hold_what_is_sent_in_the_senders_order():
    """Two stages each way: micro-batch 0 enters on rank 0, micro-batch 1 on rank 1."""
    order = parse_order("0F0 1F1 1B1 0B0\n0F1 1F0 1B0 0B1", source="both ways")
    assert lanes(order) == {
        (0, 1, "F"): [Chunk("F", 1, 0)],
        (0, 1, "B"): [Chunk("B", 0, 1)],
        (1, 0, "F"): [Chunk("F", 1, 1)],
        (1, 0, "B"): [Chunk("B", 0, 0)],
    }


def test_what_arrives_before_it_is_wanted_waits():
    """Stage 0 sends micro-batches 0 and 1, stage 1 wants 1 first."""
    order = parse_order("0F0 0F1 0B1 0B0\n1F1 1B1 1F0 1B0", source="turned")
    result = check(order)
    assert result.losses == pytest.approx(result.serial_losses, rel=1e-6)
    assert result.largest_gradient_error < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["dualpipe", "1f1b"])
def test_a_step_on_two_gpus_has_the_gradients_of_a_serial_one(name):
    result = check(
        order_of(SCHEDULES[name](2, 4)), recipe=Recipe("fp8", "mixed"), context=128, backend="nccl"
    )
    assert result.losses == pytest.approx(result.serial_losses, rel=1e-6)
    assert result.largest_gradient_error < 1e-3
