"""Prefix caching: how much of a prompt is cached and in which tier, evicted least recently used.

A tier is a set of block ids with a capacity. A prompt that was computed is written to every tier
(as DeepSeek's on-disk cache and Mooncake's store do), so a slower tier holds what a faster one has
let go. Blocks of one prompt are touched from the last to the first: the ends of prefixes go first.
"""

from __future__ import annotations

from collections.abc import Sequence


class BlockStore:
    """The blocks of one tier, least recently used out first."""

    __slots__ = ("_blocks", "_capacity")

    def __init__(self, capacity_blocks: int | None) -> None:
        """``capacity_blocks`` is None for a store without limit."""
        self._capacity = capacity_blocks
        # A dict keeps insertion order; a touched block moves to the end.
        self._blocks: dict[int, None] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        """Put ``blocks`` in, or mark them as just used; the oldest others leave."""
        known = self._blocks
        if self._capacity is None:
            # Nothing is ever let go, so the order of use does not matter.
            known.update(dict.fromkeys(blocks))
            return
        for block in reversed(blocks):
            known.pop(block, None)
            known[block] = None
        while len(known) > self._capacity:
            del known[next(iter(known))]

    def clear(self) -> None:
        self._blocks.clear()


def match_prefix(tiers: Sequence[BlockStore], blocks: Sequence[int]) -> list[int]:
    """[tier]: leading blocks of a prompt that are cached, each in the first tier that holds it."""
    found = [0] * len(tiers)
    for block in blocks:
        for index, tier in enumerate(tiers):
            if block in tier:
                found[index] += 1
                break
        else:
            break
    return found
