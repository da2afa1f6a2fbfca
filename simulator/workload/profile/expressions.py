"""Sizes as a mapping file writes them: whole numbers, or arithmetic on names of the trace."""

from __future__ import annotations

import ast
import operator as arithmetic
from collections.abc import Callable, Mapping
from functools import lru_cache

Size = int | str

_BEYOND = 2**63
"""Sizes are counted in 64 bits."""

_OPERATIONS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: arithmetic.add,
    ast.Sub: arithmetic.sub,
    ast.Mult: arithmetic.mul,
    ast.FloorDiv: arithmetic.floordiv,
}


def evaluate(size: Size, names: Mapping[str, int]) -> int:
    """Value of a size: a whole number, or +, -, *, // on numbers and names.

    Raises ValueError for a name that is not there or a result that is no size.
    """
    if isinstance(size, int):
        return size
    value = _value(check_expression(size), names, size)
    if not 0 <= value < _BEYOND:
        raise ValueError(f"size {size!r} is {value}; allowed: 0 to {_BEYOND - 1}")
    return value


@lru_cache(maxsize=1024)
def check_expression(size: Size) -> ast.expr:
    """The expression as a tree; ValueError where it is anything but arithmetic."""
    try:
        tree = ast.parse(str(size), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"size {size!r} is no arithmetic on numbers and names") from None
    for node in ast.walk(tree):
        known = isinstance(node, (ast.BinOp, ast.Name, ast.Load, *_OPERATIONS))
        if not (known or (isinstance(node, ast.Constant) and type(node.value) is int)):
            raise ValueError(
                f"size {size!r}: only whole numbers, names, +, -, * and // are allowed"
            )
    return tree


def _value(node: ast.expr, names: Mapping[str, int], size: Size) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise ValueError(f"size {size!r}: the trace does not give {node.id!r}")
        return names[node.id]
    assert isinstance(node, ast.BinOp)
    left, right = _value(node.left, names, size), _value(node.right, names, size)
    if isinstance(node.op, ast.FloorDiv) and right == 0:
        raise ValueError(f"size {size!r} divides by 0")
    return _OPERATIONS[type(node.op)](left, right)
