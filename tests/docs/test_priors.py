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


def _seconds(text: str) -> float:
    return parse_quantity(text, "time", "a prior")


def _of_data(entry: dict, path: str = "") -> dict[str, list[float]]:
    if "value" in entry:
        assert entry["source"], path
        ends = [entry[name] for name in ("value", "low", "high")]
        plain = [_seconds(end) if isinstance(end, str) else end for end in ends]
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

    kinds = data["repeat_of"]
    assert sorted(kinds) == sorted(
        row.removeprefix("repeat of ") for row in lines if row.startswith("repeat of ")
    )
    for stated, row, scale in (
        (data["compute"], "device", 1e-2),
        (data["memory"], "device, memory-bound", 1e-2),
        (data["sustained"], "sustained load", 1.0),
        (data["repeat_compute"], "repeat", 1e-2),
        (data["repeat_memory"], "repeat, memory-bound", 1e-2),
        *((kinds[kind], f"repeat of {kind}", 1e-2) for kind in kinds),
        *((error, f"other GPU, {kind}", 1.0) for kind, error in data["other_gpu"].items()),
    ):
        ends = [stated[end] for end in ("value", "low", "high")]
        assert ends == pytest.approx([scale * value for value in lines[row]]), row
    ends = [_seconds(data["repeat_seconds"][end]) for end in ("value", "low", "high")]
    assert ends == pytest.approx([1e-6 * value for value in lines["repeat, of any time"]])


@pytest.mark.parametrize(
    ("gpus", "gemm", "attention", "points", "ends"),
    [
        # Four H200 of one host, before the leases; chi-square of 5 degrees of freedom.
        (4, 0.66, 0.70, (1.610, 9.236), (1.1, 0.8, 1.9)),
        # Eight of three hosts; chi-square of 9.
        (8, 1.07, 0.98, (4.168, 14.684), (1.15, 0.9, 1.7)),
    ],
)
def test_the_prior_of_the_clock_follows_from_its_rule(gpus, gemm, attention, points, ends) -> None:
    """Older sources count as two degrees of freedom at 1.5%."""
    squares = 2 * 1.5**2 + (gpus - 1) * (gemm**2 + attention**2) / 2

    value, low, high = ends
    assert (squares / (gpus + 1)) ** 0.5 == pytest.approx(value, abs=0.02)
    assert (squares / points[1]) ** 0.5 == pytest.approx(low, abs=0.02)
    assert (squares / points[0]) ** 0.5 == pytest.approx(high, abs=0.02)


def test_the_clock_has_its_last_prior_in_every_setting() -> None:
    for setting in SETTINGS.values():
        ends = [setting["clock_sd"][name] for name in ("value", "low", "high")]
        assert ends == [0.0115, 0.009, 0.017]
