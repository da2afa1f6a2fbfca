"""The example that plans a service runs, and says what the plan holds."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "plan_a_service.py"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def found(example):
    """The plan at 10 requests/s, of instances of one node alone."""
    example["plan"].__globals__["INSTANCE_GPUS"] = (8,)
    return example["plan"](10.0)


def test_ten_requests_per_second_take_a_node_for_prompts_and_one_for_answers(example, found):
    # 8 GPUs of 2 USD/h decode 10 x 1,024 tokens/s, 36.9 M per hour: 16 / 36.9 = 0.43 USD per M.
    line = example["line_of"](10.0, found)
    assert line.startswith("   10/s    2 nodes  TTFT ")
    assert line.endswith("0.43 USD per M tokens out: prefill 1 x EP8, passes of 4K; decode 1 x EP8")


def test_the_nodes_are_drawn_over_the_rate(example, found, tmp_path):
    example["plot"]([10.0], [found], tmp_path / "nodes.png")
    assert (tmp_path / "nodes.png").read_bytes().startswith(b"\x89PNG")
