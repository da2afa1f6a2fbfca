"""Mapping files: what they may say, and what every one adds to."""

from pathlib import Path

import pytest

from hardware_profiles.fields import ROOT
from simulator.workload.profile.kernel_mapping import known_mappings, load_mapping


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: gemm", "kind: gem", "'gem' is no kernel family"),
        ("m: grid_x * 128, ", "", "sizes of gemm are m, n, k"),
        ("match: gemm", "match: '(gemm'", "not a regular expression"),
        ("operator: product", "operator: produce", "'produce' is in none of the file's tables"),
        ("operator: product", "wrong: product", "unknown field"),
        ("value: 2 us", "value: 2", "has no unit"),
    ],
)
def test_a_wrong_mapping_names_file_and_field(
    made_up_mapping: str, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(Path(made_up_mapping).read_text().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_mapping(str(path))
    assert "wrong.yaml" in str(error.value)


def test_every_shipped_mapping_loads_and_an_unknown_name_lists_them() -> None:
    assert known_mappings() == (
        "deepseek_training_profile",
        "pytorch_profile",
        "reference_model_profile",
    )
    for name in known_mappings():
        assert load_mapping(name).name == name
    with pytest.raises(ValueError, match="known: deepseek_training_profile, pytorch_profile"):
        load_mapping("nsys")


def test_every_mapping_adds_to_that_of_pytorch_programs(made_up_mapping: str) -> None:
    """NCCL is communication whatever else a mapping says, and its own rules come first."""
    own, standard = load_mapping(made_up_mapping), load_mapping("pytorch_profile")
    assert own.communication == ("all_to_all", *standard.communication)
    assert own.rank_wait == ("barrier", *standard.rank_wait)
    assert own.kernels[5:] == standard.kernels
    assert own.operators["product"].kind == "gemm"
    assert own.operators["mm"] == standard.operators["mm"]


@pytest.mark.parametrize("table", ["[1]", "null", "gemm"])
def test_what_is_no_table_is_refused_behind_another_mapping_too(table: str, tmp_path: Path) -> None:
    shipped = ROOT / "mappings" / "deepseek_training_profile.yaml"
    path = tmp_path / "mine.yaml"
    path.write_text(f"{shipped.read_text()}\noperators: {table}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.yaml: operators: .* is not allowed: it must be"):
        load_mapping(str(path))
