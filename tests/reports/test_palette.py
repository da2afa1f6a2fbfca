"""Colours and names that all figures share."""

from reference_model.trace import PHASES as TRACED_PHASES
from reports import palette
from simulator.hardware.prediction import PROVENANCES


def test_what_a_legend_names_has_a_colour():
    assert list(palette.WORKS) == list(palette.WORK_COLOURS)
    assert list(palette.PHASES) == list(palette.PHASE_COLOURS)
    assert list(palette.PROVENANCE_COLOURS) == list(PROVENANCES)


def test_every_recorded_phase_has_a_name():
    assert set(TRACED_PHASES) == set(palette.PHASES)
