"""A schedule that was printed reads back, and a broken file is refused in one line."""

from pathlib import Path

import pytest

from simulator.workload.schedules.files import is_schedule_file, read_schedule
from simulator.workload.schedules.grid import render_grid
from simulator.workload.schedules.known import SCHEDULES, build_schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_reads_back_from_its_printed_form(name: str, tmp_path: Path) -> None:
    schedule = SCHEDULES[name](4, 10)
    path = tmp_path / f"{name}.txt"
    path.write_text(f"# as printed\n\n{render_grid(schedule)}\n", encoding="utf-8")
    assert read_schedule(path) == schedule


def test_a_file_is_a_schedule_of_its_own_sizes(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("rank 0 | 0F0 0F1 0B0 0B1\nrank 1 | 1F0 1B0 1F1 1B1\n", encoding="utf-8")
    found = build_schedule(str(path), 2, 2, virtual_stages=None)
    assert (found.name, found.ranks, found.microbatches, found.stages) == ("mine", 2, 2, 2)
    with pytest.raises(ValueError, match=r"mine.txt: ranks = 4, must be 2, as in the file$"):
        build_schedule(str(path), 4, 2, virtual_stages=None)
    with pytest.raises(ValueError, match=r"microbatches = 30, must be 2, as in the file$"):
        build_schedule(str(path), 2, 30, virtual_stages=None)


def test_names_of_schedules_are_no_paths() -> None:
    assert not any(map(is_schedule_file, SCHEDULES))
    assert is_schedule_file("./mine")
    assert is_schedule_file("mine.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rank; allowed: lines such as"),
        ("rank 0 | 0F0 0B0\nsecond", r", line 2: 'second'; allowed: 'rank 1 | 0F0 0B0 ...'"),
        ("rank 1 | 0F0 0B0", ", line 1: rank 1; allowed: rank 0, ranks in order from 0"),
        ("rank 0 |", ", line 1: rank 0 has no action; allowed: at least one"),
        ("# two\nrank 0 | 0F0 0X0", ", line 2: action '0X0': must be stage, one of F, B, I, W"),
        ("rank 0 | 0F0 0B0 2F0 2B0", "no action of stage 1, though of 2; allowed: numbers from 0"),
        ("rank 0 | 0F0 0B0 0F999999999", "no action of micro-batch 1, though of 999999999;"),
        (
            "rank 0 | 0F0 0B0 1F1\nrank 1 | 1F0 1B0 0F1 0B1 1B1",
            ", line 2: 1B1 runs on rank 1, others of stage 1 on rank 0; allowed: one rank for each",
        ),
        ("rank 0 | 0F0 0B0\nrank 1 | 0F1 0B1 1F1 1B1", "no micro-batch of the first half passes"),
        ("rank 0 | 0F0 0B0 0F1", "micro-batch 1 on stage 0 must have one backward"),
        ("rank 0 | 0F0 0B0\n\nrank 1 | 1B0 1F0", ", line 3: 1B0 on rank 1 can never start"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_schedule(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no.txt: cannot be read: No such file or directory; allowed"
    ):
        read_schedule(tmp_path / "no.txt")


def test_what_has_no_end_is_not_read():
    with pytest.raises(ValueError, match="/dev/zero: cannot be read: not a file; allowed: a sched"):
        read_schedule(Path("/dev/zero"))
