"""Commands that need a GPU, and what they refuse without one."""

from hardware_profiles.tables import table_path
from reference_model.__main__ import main


def test_rates_of_a_shipped_table_stand_beside_its_ceilings(capsys):
    assert main(["achieved", str(table_path("h200_sxm_reference"))]) == 0
    assert "gemm" in capsys.readouterr().out
