"""Tiers of cached blocks."""

from simulator.execution.fleet.prefix_cache import BlockStore, match_prefix


def test_a_match_ends_at_the_first_block_that_no_tier_holds() -> None:
    store = BlockStore(None)
    store.touch([1, 2, 3, 5])
    assert match_prefix([store], [1, 2, 3, 4, 5]) == [3]


def test_each_block_is_found_in_the_first_tier_that_holds_it() -> None:
    fast, slow = BlockStore(None), BlockStore(None)
    fast.touch([1, 2])
    slow.touch([1, 2, 3, 4])
    assert match_prefix([fast, slow], [1, 2, 3, 4, 9]) == [2, 2]


def test_a_full_store_lets_the_least_recently_used_go() -> None:
    store = BlockStore(3)
    store.touch([1])
    store.touch([2])
    store.touch([3])
    store.touch([1])
    store.touch([4])
    assert [block in store for block in (1, 2, 3, 4)] == [True, False, True, True]
    assert len(store) == 3


def test_of_one_prompt_the_end_goes_before_the_beginning() -> None:
    store = BlockStore(3)
    store.touch([1, 2, 3, 4, 5])
    assert match_prefix([store], [1, 2, 3, 4, 5]) == [3]
