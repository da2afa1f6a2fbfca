"""What a step depends on, shown."""

from rich.console import Console
from sensitivities import FOUND

from reports.sensitivity import needed, sensitivity_table, tornado_chart


def test_the_table_draws_what_an_input_saves_and_costs():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(sensitivity_table(FOUND))
    lines = console.export_text().splitlines()

    assert lines[0].strip() == "mine: step_time_s 18 s, ideal ranks"
    # The longest, 0.6, has nine characters: 0.4 six, 0.2 three.
    assert "│ HBM   │ 3.35 TB/s  │     -0.500 │    ██████|▒▒▒▒▒▒▒▒▒ │ x 1.25        │" in lines
    assert "│ NIC   │ 400 Gbit/s │     -0.100 │          |▒▒▒       │ cannot (3.0%) │" in lines
    assert "without effect: PCIe" in " ".join(line.strip() for line in lines)


def test_an_input_that_must_vanish_says_so():
    assert needed({"need": {"factor": 0.0, "values": {}}}) == "none of it"


def test_the_tornado_has_a_bar_to_either_side_of_each_input_that_matters():
    chart = tornado_chart(FOUND)

    assert chart.lanes == ("HBM (3.35 TB/s)", "NIC (400 Gbit/s)")
    assert [(span.lane, span.start, span.end) for span in chart.spans] == [
        (0, -0.4, 0.0), (0, 0.0, 0.6), (1, 0.0, 0.0), (1, 0.0, 0.2),
    ]  # fmt: skip
    assert chart.notes == ("x 1.25", "cannot (3.0%)")
