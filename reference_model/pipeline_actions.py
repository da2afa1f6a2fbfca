"""What a rank of a pipeline does: works of stages on micro-batches, after the zero-bubble papers.

    F    forward of one micro-batch through one stage
    B    its full backward: input and weight gradients
    I    its backward for inputs only; the weight gradient is deferred
    W    a weight gradient that was deferred
    F&B  a forward and a full backward chunk of two micro-batches, overlapped operator by operator

Text form of a chunk: stage, work, micro-batch ("0F12"); of a pair: "0F12&7B3".
"""

import re
from typing import NamedTuple

FORWARD_WORK = "F"
FULL_BACKWARD = "B"
INPUT_BACKWARD = "I"
WEIGHT_GRADIENT = "W"
OVERLAPPED = "F&B"
WORKS = (FORWARD_WORK, OVERLAPPED, FULL_BACKWARD, INPUT_BACKWARD, WEIGHT_GRADIENT)


class Chunk(NamedTuple):
    """One work of one stage on one micro-batch."""

    work: str
    """F, B, I or W."""
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.work}{self.microbatch}"


class Action(NamedTuple):
    """What a rank does without interruption: one chunk, or a forward and a backward overlapped."""

    chunk: Chunk
    """The only chunk, or the forward chunk of a pair."""
    overlapped: Chunk | None = None
    """The full backward chunk that runs inside the same action."""

    @property
    def work(self) -> str:
        """One of WORKS."""
        return self.chunk.work if self.overlapped is None else OVERLAPPED

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return (self.chunk,) if self.overlapped is None else (self.chunk, self.overlapped)

    def __str__(self) -> str:
        return str(self.chunk) if self.overlapped is None else f"{self.chunk}&{self.overlapped}"


_CHUNK_TEXT = re.compile(r"(\d+)([FBIW])(\d+)")


def parse_action(text: str) -> Action:
    """Read an action back from its text form: parse_action(str(action)) == action.

    Raises ValueError where the text is not of that form.
    """
    matches = [_CHUNK_TEXT.fullmatch(part) for part in text.split("&")]
    chunks = [Chunk(m[2], int(m[1]), int(m[3])) for m in matches if m is not None]
    if len(chunks) != len(matches) or len(chunks) > 2:
        raise ValueError(
            f"action {text!r}: must be stage, one of F, B, I, W, and micro-batch, such as 0F12, "
            f"or a pair such as 0F12&7B3"
        )
    return Action(*chunks)
