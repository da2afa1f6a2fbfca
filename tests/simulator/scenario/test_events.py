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
