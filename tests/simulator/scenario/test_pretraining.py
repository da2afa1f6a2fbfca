"""What a file may say of a whole training run."""

import pytest

from simulator.scenario.files import load_scenario
from simulator.scenario.pretraining import PretrainingJob

DENSE = "dense_16k_h100_incidents"


def test_a_shipped_run_reads_as_it_is_written() -> None:
    job = load_scenario("deepseek_v3_pretraining").job_as(PretrainingJob)

    (phase, *_) = job.phases
    assert phase.tokens == 14.8e12
    assert phase.warm_up is not None
    assert [point.sequences for point in phase.warm_up.points] == [3072, 4096]
    assert job.checkpoint is not None
    assert job.checkpoint.interval == 1800.0
    assert job.failures["gpu"].detection == 300.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pretraining.checkpoint=null", "checkpoint is missing; a run that fails needs it"),
        ("pretraining.failures.gpu.detection=5", "5 has no unit"),
        ("pretraining.failures.gpu.gpu_hours_between=0", "greater than 0"),
        ("pretraining.checkpoint.overlapped=true", "copy_bandwidth_per_gpu is missing"),
        ("pretraining.phases=[]", "at least 1 item"),
        (
            "pretraining.phases=[{name: a, tokens: 0, scenario: dualpipe_h800_2048}]",
            "0 is not allowed",
        ),
        ("pretraining.phases=[{name: a, tokens: 1}]", "allowed: either scenario or stated"),
        (
            "pretraining.phases=[{name: a, tokens: 5, scenario: x, warm_up: "
            "{sequences: 1, tokens: 6}}]",
            "warm_up.tokens 6; allowed: at most its tokens, 5",
        ),
        (
            "pretraining.phases=[{name: a, tokens: 1, scenario: x}, "
            "{name: a, tokens: 1, scenario: x}]",
            "two are called 'a'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")) as refused:
        load_scenario(DENSE, [change])

    assert "\n" not in str(refused.value)
