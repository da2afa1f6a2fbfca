"""Sizes of mapping files."""

import pytest

from simulator.workload.profile.expressions import evaluate


def test_sizes_are_arithmetic_and_nothing_else() -> None:
    assert evaluate("grid_x * 16 - 2 * (a // 3)", {"grid_x": 4, "a": 7}) == 60
    for wrong in ("__import__('os')", "a ** b", "1.5", "a if b else c", "", "f(a)"):
        with pytest.raises(ValueError, match="size"):
            evaluate(wrong, {"a": 1, "b": 2, "c": 3})
    with pytest.raises(ValueError, match="divides by 0"):
        evaluate("a // 0", {"a": 1})
    with pytest.raises(ValueError, match=r"is -4; allowed: 0 to 9223372036854775807"):
        evaluate("a - 5", {"a": 1})
    with pytest.raises(ValueError, match=r"is 18446744073709551616; allowed: 0 to"):
        evaluate("a * a", {"a": 2**32})
