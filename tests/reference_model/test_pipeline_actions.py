"""Chunks and actions as text."""

import pytest

from reference_model.pipeline_actions import Action, Chunk, parse_action


def test_an_action_is_read_back_from_its_text() -> None:
    pair = Action(Chunk("F", 0, 12), Chunk("B", 7, 3))
    assert str(pair) == "0F12&7B3"
    assert parse_action("0F12&7B3") == pair
    assert (pair.work, parse_action("2I0").work) == ("F&B", "I")


@pytest.mark.parametrize("text", ["", "0F", "F1", "0X1", "0F1&", "0F1&1B0&2B0", "-1F0"])
def test_text_that_is_no_action_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="must be stage, one of F, B, I, W"):
        parse_action(text)
