"""The page of priors and the settings that are shipped say the same, in the units of the page."""

import re
from pathlib import Path

import pytest
import yaml

from hardware_profiles.units import parse_quantity

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "priors.md").read_text()
SETTINGS = yaml.safe_load((ROOT / "simulator" / "scenario" / "skew_settings.yaml").read_text())


def _of_page(setting: str) -> dict[str, list[float]]:
    """{input: value, low, high} of a setting's table, percent and milliseconds made plain."""
    section = PAGE.split(f"\n### {setting}\n")[1].split("\n#")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not re.match(r"[\d.]+$", cells[1]):
            continue
        scale = {"%": 1e-2, "% of hosts": 1e-2, "ms": 1e-3}.get(cells[4], 1.0)
        found[cells[0]] = [scale * float(cell) for cell in cells[1:4]]
    return found


def _of_data(entry: dict, path: str = "") -> dict[str, list[float]]:
    if "value" in entry:
        assert entry["source"], path
        ends = [entry[name] for name in ("value", "low", "high")]
        plain = [parse_quantity(e, "time", path) if isinstance(e, str) else e for e in ends]
        return {path.strip("."): plain}
    parts = [_of_data(e, f"{path}.{name}") for name, e in entry.items() if isinstance(e, dict)]
    return {name: values for part in parts for name, values in part.items()}


@pytest.mark.parametrize("setting", ["forced_balance", "eplb_with_drift", "bias_balanced"])
def test_each_setting_holds_the_values_of_the_page(setting: str) -> None:
    page, data = _of_page(setting), _of_data(SETTINGS[setting])

    assert list(data) == list(page)
    for name, values in page.items():
        assert data[name] == pytest.approx(values), name


def test_the_page_names_every_setting() -> None:
    assert list(SETTINGS) == ["forced_balance", "eplb_with_drift", "bias_balanced"]


def test_what_moves_all_kernels_as_one_is_that_of_the_page() -> None:
    data = yaml.safe_load((ROOT / "hardware_profiles" / "common_errors.yaml").read_text())
    lines = {
        cells[1].strip(): [float(cell) for cell in cells[2:5]]
        for cells in (line.split("|") for line in PAGE.splitlines())
        if len(cells) == 8 and re.match(r"\s*[\d.]+\s*$", cells[4])
    }

    for name, row, scale in (
        ("compute", "device", 1e-2),
        ("memory", "device, memory-bound", 1e-2),
        ("sustained", "sustained load", 1.0),
        ("repeat_compute", "repeat", 1e-2),
        ("repeat_memory", "repeat, memory-bound", 1e-2),
    ):
        ends = [data[name][end] for end in ("value", "low", "high")]
        assert ends == pytest.approx([scale * value for value in lines[row]]), name


def test_the_prior_of_the_clock_follows_from_its_rule() -> None:
    # Two degrees of freedom at 1.5%, three at 0.66% (GEMM) and 0.70% (attention) of four H200;
    # chi-square of 5 degrees of freedom: 1.610 and 9.236.
    squares = 2 * 1.5**2 + 3 * (0.66**2 + 0.70**2) / 2

    assert round((squares / 5) ** 0.5, 1) == 1.1
    assert round((squares / 9.236) ** 0.5, 1) == 0.8
    assert round((squares / 1.610) ** 0.5, 1) == 1.9
    clock = SETTINGS["bias_balanced"]["clock_sd"]
    assert [clock[name] for name in ("value", "low", "high")] == [0.011, 0.008, 0.019]
