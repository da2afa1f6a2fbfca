"""How a step runs as events: channels, and which jobs have the choice."""

import pytest

from simulator.scenario.events import CHANNELS
from simulator.scenario.files import load_scenario


def events(*changes, name="dualpipe_h800_2048"):
    return load_scenario(name, ["fidelity=events", *changes]).file.events


def test_contention_is_on_off_or_a_list_of_channels():
    assert events().contention == CHANNELS
    assert events("events.contention=off").contention == ()
    assert events("events.contention=on").contention == CHANNELS
    assert events("events.contention=[sms, nic]").contention == ("sms", "nic")


def test_other_jobs_refuse_events_with_a_line():
    with pytest.raises(ValueError, match="fidelity: events: a collective job runs in one way only"):
        events(name="incast")


def test_inputs_of_events_need_events():
    with pytest.raises(ValueError, match="events: allowed with fidelity: events, not timeline"):
        load_scenario("dualpipe_h800_2048", ["events.window=0"])


def test_only_a_training_step_runs_as_a_whole():
    assert events("events.of=step").of == "step"
    with pytest.raises(ValueError, match=r"events\.of: step: allowed with a training job"):
        events("events.of=step", name="decode_ep8_h200")


def test_figures_stay_whatever_way_a_step_is_run():
    loaded = load_scenario("dualpipe_h800_2048", ["fidelity=events", "events.window=0"])
    assert loaded.figures_left_out == ()


def test_experts_that_gpus_share_have_no_flows():
    sharing = "training.tensor_parallel=2", "training.expert_tensor_parallel=2"
    message = (
        r"fidelity: events: training.expert_tensor_parallel: 2: a token's copies to the GPUs that "
        r"share an expert are not simulated by flows; allowed: 1, or events.contention=off"
    )
    with pytest.raises(ValueError, match=message):
        events(*sharing)
    assert events(*sharing, "events.contention=off").contention == ()


def test_channels_have_deepeps_buffers():
    """DeepEP's Config of 64 GPUs: chunks of 8 tokens, buffers of 128."""
    channel = events().channel
    assert (channel.chunk_tokens, channel.buffer_tokens) == (8, 128)
    assert events("events.channel.buffer_tokens=16").channel.buffer_tokens == 16


def test_the_window_grows_with_the_flows_of_a_transfer():
    """Four times as many flows among twice as many ranks."""
    assert [events().window_of(ranks) for ranks in (8, 64, 128, 320)] == [0.002, 0.002, 0.008, 0.05]
    assert events("events.window=0").window_of(320) == 0
