"""What several sources give together."""

from pathlib import Path

from made_up_rows import made_up

from simulator.calibration.imported_rows import ImportedRows, KernelSet, sources_together
from simulator.workload.profile.mapped_kernels import UnmappedKernel

ROWS = tuple(made_up()[:3])
LOST = UnmappedKernel("strange", "no rule", 1, 3e-5)


def test_sources_follow_each_other_and_the_last_says_what_a_kernel_set_is():
    old, new, other = (KernelSet("a", (1,)), KernelSet("a", (2,)), KernelSet("a", (1,), place=1))
    first = ImportedRows(
        measurements=ROWS[:2], read_by=("one",), warnings=("w",), sets=(old, other)
    )
    second = ImportedRows(
        measurements=ROWS[2:], read_by=("two",), sets=(new,), unmapped=(LOST,),
        modules=(Path("m.csv"),),
    )  # fmt: skip
    assert sources_together([first, second]) == ImportedRows(
        measurements=ROWS,
        read_by=("one", "two"),
        warnings=("w",),
        sets=(new, other),
        unmapped=(LOST,),
        modules=(Path("m.csv"),),
    )


def test_kernels_without_a_row_are_a_line_each():
    assert str(LOST) == "strange: 1 kernels, 3e-05 s: no rule"
