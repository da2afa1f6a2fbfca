"""Tables on standard output."""

from rich.table import Table

from simulator.cli.options import PIPE_COLUMNS, print_tables


def test_into_a_pipe_a_table_is_100_columns_wide_and_brackets_stay(capsys):
    table = Table("name", expand=True)
    table.add_row("[bold]")
    print_tables(table)
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {PIPE_COLUMNS} == {100}
    assert any("[bold]" in line for line in lines)
