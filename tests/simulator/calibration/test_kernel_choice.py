"""One version of each kernel, by a rule that never counts rows."""

from hardware_profiles.tables import Measurement
from simulator.calibration.kernel_choice import choose_versions
from simulator.calibration.tables import KernelSet


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


OLD, NEW = KernelSet("old", (0, 5, 6, 2)), KernelSet("new", (0, 5, 12))


def test_the_newest_version_is_taken_however_few_its_rows_are():
    choice = choose_versions([row("old"), row("old"), row("new")], [OLD, NEW], named=())
    assert choice.sets == ("new",)
    assert choice.aside == {"old: another kernel of gemm bfloat16 -> bfloat16: new is taken": 2}


def test_named_sets_are_taken_in_their_order_and_alone():
    rows = [row("old"), row("new"), row("other", kind="batched_gemm")]
    choice = choose_versions(rows, [OLD, NEW], named=("old",))
    assert choice.sets == ("old", "other")
    assert [kept.kernel_set for kept in choice.rows] == ["old", "other"]


def test_a_later_patch_is_newer_than_the_release_it_mends():
    release, patch = KernelSet("release", (0, 5, 6)), KernelSet("patch", (0, 5, 6, 2))
    choice = choose_versions([row("release"), row("patch")], [release, patch], named=())
    assert choice.sets == ("patch",)


def test_of_one_version_the_first_in_its_mapping_is_taken():
    first, second = KernelSet("z", (1,), place=0), KernelSet("a", (1,), place=1)
    assert choose_versions([row("a"), row("z")], [first, second], named=()).sets == ("z",)


def test_a_kernel_that_is_no_default_is_taken_by_name_only():
    cast = KernelSet("cast", (1,), unless_named="casts the cache")
    choice = choose_versions([row("cast")], [cast], named=())
    assert choice.rows == ()
    assert choice.aside == {"cast: another kernel of gemm bfloat16 -> bfloat16: casts the cache": 1}
    assert choose_versions([row("cast")], [cast], named=("cast",)).sets == ("cast",)


def test_dispatch_within_a_node_and_between_nodes_are_two_kernels():
    rows = [row("new", "dispatch", nodes="1"), row("old", "dispatch", nodes="4")]
    assert choose_versions(rows, [OLD, NEW], named=()).sets == ("new", "old")
