"""Training learns what can be learned, repeats itself, and resumes where it was interrupted."""

import dataclasses
import math

import pytest
import torch

from reference_model.train import LOSSES, Progress, Training, TrainingSettings, resume

TINY = TrainingSettings(
    config="debug", precision="bf16", kernels="reference", device="cpu", steps=6, sequences=2,
    first_sequences=1, context=24, peak_learning_rate=3e-3, warmup_steps=2, schedule="report",
    gamma=0.001, balance_alpha=0.0, seed=0, initial_deviation=0.0,
    data="markov", symbols=8, concentration=0.1,
    data_seed=0,
)  # fmt: skip


def trained(settings, until=None):
    training = Training(settings)
    training.run(until=until)
    return training


@pytest.mark.parametrize("changes", [{"precision": "fp8"}, {"balance_alpha": 0.01}])
def test_an_interrupted_run_resumes_to_the_same_loss(tmp_path, changes):
    settings = dataclasses.replace(TINY, steps=4, **changes)
    whole = trained(settings)
    trained(settings, until=2).save(tmp_path)
    continued = resume(tmp_path)
    assert len(continued.history) == 2
    continued.run()
    for one, other in zip(whole.history, continued.history, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_the_loss_goes_down_towards_the_entropy_of_the_source():
    settings = dataclasses.replace(
        TINY, precision="fp32", steps=40, sequences=4, symbols=4, warmup_steps=5
    )
    training = trained(settings)
    losses = [record.main for record in training.history]
    held_out, _, load = training.evaluate(batches=2)
    assert losses[0] > math.log(512) * 0.9
    # 192 tokens are too few to tell the loss from the entropy by less than a tenth or two.
    assert held_out == pytest.approx(training.source.entropy, abs=0.2)
    assert load.sum() == 2 * 4 * 24 * 2 * 4  # batches, tokens, choices, layers


def test_other_seeds_give_other_runs_and_the_same_seed_the_same():
    def losses(**changes):
        run = trained(dataclasses.replace(TINY, steps=2, **changes))
        return [record.main for record in run.history]

    assert losses() == losses()
    assert losses() != losses(seed=1)
    assert losses() != losses(data_seed=1)


def test_batches_and_biases_follow_their_schedules(tmp_path):
    training = trained(dataclasses.replace(TINY, steps=3))
    assert [record.sequences for record in training.history] == [1, 2, 2]
    biases = training.model.layers[1].mlp.gate.e_score_correction_bias
    assert biases.abs().max() == pytest.approx(0.003, rel=1e-3)
    training.save(tmp_path)
    assert len((tmp_path / LOSSES).read_text().splitlines()) == 4


def test_the_first_weights_have_the_deviation_asked_for():
    model = Training(dataclasses.replace(TINY, initial_deviation=0.006)).model
    for parameter in model.parameters():
        if parameter.dim() > 1:
            assert float(parameter.detach().std()) == pytest.approx(0.006, rel=0.1)
        else:
            assert parameter.eq(1).all()


def test_progress_prints_a_line_now_and_then():
    training = Training(dataclasses.replace(TINY, steps=3))
    lines = []
    training.run(on_step=Progress(training, every=2, show=lines.append))
    assert len(lines) == 2
    assert lines[1].startswith("step     3/3  loss ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"first_sequences": 3}, "first_sequences = 3 must be at most sequences = 2"),
        ({"gamma": -1.0}, "gamma = -1.0 must not be negative"),
        ({"peak_learning_rate": 0.0}, "peak_learning_rate = 0.0 must be above 0"),
        ({"precision": "fp4"}, "precision 'fp4' is not one of"),
        ({"symbols": 1000}, "1000 symbols, the vocabulary of debug only 512"),
        ({"device": "toaster"}, "device 'toaster' is not a torch device"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Training(dataclasses.replace(TINY, **changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_an_error():
    with pytest.raises(ValueError, match="there is no CUDA device here"):
        Training(dataclasses.replace(TINY, device="cuda"))


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint to resume from"):
        resume(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"not torch's")
    with pytest.raises(ValueError, match="is not a checkpoint of a training run"):
        resume(tmp_path)
