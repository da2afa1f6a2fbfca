"""What a scenario file says of training."""

from simulator.scenario.files import load_scenario
from simulator.scenario.training import OptimizerTypes, TrainingJob


def test_the_main_job_trains_on_15360_sequences_of_4096_tokens():
    job = load_scenario("dualpipe_h800_2048").job
    assert isinstance(job, TrainingJob)
    assert job.step_tokens == 15_360 * 4_096 == 62_914_560
    assert job.micro_batch_tokens == job.micro_batch_sequences * 4_096


def test_the_optimizer_keeps_the_types_of_the_report():
    kept = OptimizerTypes()
    assert (kept.master, kept.gradients, kept.moments) == ("float32", "float32", "bfloat16")


def test_bf16_is_read_as_bfloat16():
    job = load_scenario("dualpipe_h800_2048", ["training.recipe=bf16"]).job
    assert job is not None
    assert job.recipe == "bfloat16"


def test_zb1p_is_read_as_zb_h1():
    """DeepSeek's papers and those of the zero bubble have a name each."""
    job = load_scenario("dualpipe_h800_2048", ["training.schedule=zb1p"]).job
    assert isinstance(job, TrainingJob)
    assert job.schedule == "zb_h1"
