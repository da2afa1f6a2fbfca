"""One version of each kernel, by a rule that never counts rows."""

from hardware_profiles.tables import Measurement
from simulator.calibration.imported_rows import ImportedRows, KernelSet
from simulator.calibration.kernel_choice import choose_versions


def row(kernel_set, kind="gemm", **conditions):
    conditions = {"set": kernel_set, **conditions}
    return Measurement(
        kind=kind,
        sizes=(("k", 1), ("m", 1), ("n", 1)),
        dtype="bfloat16",
        sms=132,
        seconds=1e-5,
        spread=None,
        source="made up",
        conditions=tuple(sorted(conditions.items())),
    )


def chosen(rows, sets, *, named):
    """Kernel sets of the rows that are taken, and what is said of the others."""
    read = ImportedRows(measurements=tuple(rows), sets=tuple(sets))
    taken = choose_versions(read, named=named)
    assert {row.kernel_set for row in taken.measurements} == {known.name for known in taken.sets}
    return tuple(known.name for known in taken.sets), taken.warnings


OLD, NEW = KernelSet("old", (0, 5, 6, 2)), KernelSet("new", (0, 5, 12))


def test_the_newest_version_is_taken_however_few_its_rows_are():
    sets, warnings = chosen([row("old"), row("old"), row("new")], [OLD, NEW], named=())
    assert sets == ("new",)
    assert warnings == (
        "2 rows set aside: old: another kernel of gemm bfloat16 -> bfloat16: new is taken",
    )


def test_named_sets_are_taken_in_their_order_and_alone():
    rows = [row("old"), row("new"), row("other", kind="batched_gemm")]
    sets, _ = chosen(rows, [OLD, NEW], named=("old",))
    assert sets == ("old", "other")


def test_a_later_patch_is_newer_than_the_release_it_mends():
    release, patch = KernelSet("release", (0, 5, 6)), KernelSet("patch", (0, 5, 6, 2))
    sets, _ = chosen([row("release"), row("patch")], [release, patch], named=())
    assert sets == ("patch",)


def test_of_one_version_the_first_in_its_mapping_is_taken():
    first, second = KernelSet("z", (1,), place=0), KernelSet("a", (1,), place=1)
    sets, _ = chosen([row("a"), row("z")], [first, second], named=())
    assert sets == ("z",)


def test_a_kernel_that_is_no_default_is_taken_by_name_only():
    cast = KernelSet("cast", (1,), unless_named="casts the cache")
    sets, warnings = chosen([row("cast")], [cast], named=())
    assert sets == ()
    assert warnings == (
        "1 rows set aside: cast: another kernel of gemm bfloat16 -> bfloat16: casts the cache",
    )
    assert chosen([row("cast")], [cast], named=("cast",)) == (("cast",), ())


def test_dispatch_within_a_node_and_between_nodes_are_two_kernels():
    rows = [row("new", "dispatch", nodes="1"), row("old", "dispatch", nodes="4")]
    assert chosen(rows, [OLD, NEW], named=()) == (("new", "old"), ())
