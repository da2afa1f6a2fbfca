"""The axes of the search and what is tried of them."""

import pytest
from small_plans import CHANGES, IDEAL, SCENARIO

from simulator.analysis.plan.training_layouts import axis_values, layout_of_job
from simulator.scenario.files import load_scenario


def test_axes_of_the_published_job_are_what_divides_its_gpus():
    axes = axis_values(load_scenario(SCENARIO), {})
    assert axes["pp"] == (1, 2, 4, 8, 16, 32, 64)
    assert axes["ep"] == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert axes["tp"] == (1, 2, 4, 8)
    assert axes["cp"] == (1,)
    assert axes["micro_batch"] == (1, 2, 4, 8)
    assert len(axes["schedule"]) == 14


def test_axes_of_any_number_of_gpus_are_known_at_once():
    axes = axis_values(load_scenario(SCENARIO, ["cluster.nodes=536870912"]), {})
    assert axes["pp"] == (1, 2, 4, 8, 16, 32, 64)
    assert axes["ep"] == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    nine = axis_values(load_scenario(SCENARIO, ["cluster.nodes=9"]), {})
    assert nine["pp"] == (1, 2, 3, 4, 6, 8, 9, 12, 18, 24, 36)


def test_long_sequences_are_shared_as_long_as_a_gpu_keeps_4096_tokens():
    scenario = load_scenario(SCENARIO, ["training.sequence_length=16384"])
    assert axis_values(scenario, {})["cp"] == (1, 2, 4)


def test_an_axis_that_there_is_not_is_refused():
    small = load_scenario(SCENARIO, [*CHANGES, *IDEAL])
    with pytest.raises(ValueError, match="--fix sms: no axis of the search; allowed: pp, ep, tp"):
        axis_values(small, {"sms": [8]})


def test_a_layout_is_written_as_settings_that_make_it():
    layout = layout_of_job(load_scenario(SCENARIO).job)
    assert str(layout) == "PP16 EP64 dualpipe micro-batch 1 ZeRO-1"
    texts = [f"{path}={value}" for path, value in layout.settings.items()]
    assert layout_of_job(load_scenario("fsdp_b200_256", texts).job) == layout
