"""Muon: the products of its iterations, counted by hand, and who makes them."""

from simulator.workload.muon import busiest, flops, newton_schulz, owned, values


def test_an_iteration_on_an_expert_is_three_products():
    """Down projection of DeepSeek-V3's experts, 7,168 x 2,048: m = 2,048 and n = 7,168."""
    sizes = [(o["m"], o["n"], o["k"]) for o in newton_schulz((7168, 2048), iterations=1)]
    assert sizes == [(2048, 2048, 7168), (2048, 2048, 2048), (2048, 7168, 2048)]
    # 2 m m n, twice, and 2 m m m.
    assert flops((7168, 2048)) == 2 * (2 * 2048 * 2048 * 7168) + 2 * 2048**3 == 137_438_953_472
    assert flops((2048, 7168)) == flops((7168, 2048))


def test_five_iterations_on_a_square_matrix_take_thirty_cubes_of_its_rows():
    products = newton_schulz((1024, 1024), iterations=5)
    assert sum(o.flops for o in products) == 5 * 6 * 1024**3
    assert {(o.dtype, o.out_dtype) for o in products} == {("bfloat16", "bfloat16")}


def test_owners_take_whole_matrices_those_of_most_work_first():
    big, small = (64, 64), (16, 16)  # 1,572,864 and 24,576 FLOPs
    owners = owned([small, big, small, big, small], 2)
    assert owners == [[big, small, small], [big, small]]
    assert busiest(owners) == [big, small, small]
    assert values(busiest(owners)) == 64 * 64 + 2 * 16 * 16


def test_more_owners_than_matrices_leave_some_without():
    assert owned([(2, 2)], 128) == [[(2, 2)]]
    assert owned([], 4) == []
    assert busiest([]) == ()
