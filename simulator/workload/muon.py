"""Orthogonalise momenta: the products of Muon, and which GPU makes them.

Muon replaces the momentum of a matrix by a nearly orthogonal one, which iterations of Newton and
Schulz approach (Jordan 2024, kellerjordan.github.io/posts/muon; arXiv 2502.16982, section 2.1).
With X the momentum of m rows and n >= m columns, or its transpose, one of them is

    A = X X^T            2 m m n FLOPs
    B = b A + c A A      2 m m m
    X = a X + B X        2 m m n

in BF16, five by default; their sums ride on the products. An iteration needs a whole matrix. Copies
share matrices out whole, each to an owner that reduces its gradient, updates it and sends it to
the others: the layer-wise distributed optimizer of Megatron Core, or distributed Muon (arXiv
2502.16982, section 2.3) with shards that end where matrices do. No matrix is gathered or made
twice, and the busiest owner sets the pace. Gradients and parameters are exchanged as even shards
would be: as many bytes leave and reach all owners together.

Matrices are those that the model multiplies by, gate and up of a feed-forward as one. Embedding,
output head, norms and biases take AdamW, as in arXiv 2502.16982, section 2.2. Numbers of sections
are from memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heapreplace

from reference_model.trace import Operator

Matrix = tuple[int, int]
"""Rows and columns."""


def newton_schulz(matrix: Matrix, *, iterations: int) -> list[Operator]:
    """The products that orthogonalise one matrix."""
    rows, columns = min(matrix), max(matrix)
    of_one = [(rows, rows, columns), (rows, rows, rows), (rows, columns, rows)]
    return [
        Operator(
            name="optimizer.newton_schulz",
            kind="gemm",
            phase="weight_grad",
            segment="optimizer",
            dtype="bfloat16",
            out_dtype="bfloat16",
            sizes=(("k", k), ("m", m), ("n", n)),
            recompute=False,
            accumulate=False,
        )
        for m, n, k in of_one * iterations
    ]


def flops(matrix: Matrix) -> float:
    """Operations of one iteration."""
    return sum(operator.flops for operator in newton_schulz(matrix, iterations=1))


def owned(matrices: Iterable[Matrix], copies: int) -> list[list[Matrix]]:
    """[owners], the matrices of each: one after the other, those with most FLOPs first, to whoever
    has least so far. Owners without any are left out."""
    work = {matrix: flops(matrix) for matrix in Counter(matrices)}
    ordered = sorted(matrices, key=lambda matrix: (-work[matrix], matrix))
    owners: list[list[Matrix]] = [[] for _ in range(min(copies, len(ordered)))]
    least = [(0.0, place) for place in range(len(owners))]
    for matrix in ordered:
        sum_so_far, place = least[0]
        owners[place].append(matrix)
        heapreplace(least, (sum_so_far + work[matrix], place))
    return owners


def busiest(owners: Sequence[Sequence[Matrix]]) -> Sequence[Matrix]:
    """The matrices of the owner with most FLOPs."""
    return max(owners, key=lambda own: sum(map(flops, own)), default=())


def values(matrices: Iterable[Matrix]) -> int:
    """Parameters of the matrices together."""
    return sum(rows * columns for rows, columns in matrices)
