"""Pages in a browser: light enough, no request, every word whole and readable, all within reach.

A headless Chromium shows each page at 1,400 and at 800 pixels, on light and on dark; axe-core looks
for barriers on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, chromium, find_chromium
from made_up_plans import BOUGHT, BOUNDS, GB200, H20, H800, SERVING_PLANS, TRAINING_PLAN
from sensitivities import FOUND

from reports.attribution_page import step_attribution_page
from reports.comparison_page import comparison_page, index_page
from reports.jobs import JOB_REPORTS
from reports.machines_page import machines_page
from reports.page import Page, render_page
from reports.sensitivity_page import sensitivity_page
from reports.serving_plan_page import serving_plan_page
from reports.training_page import training_page
from reports.training_plan_page import training_plan_page
from reports.validation_page import validation_page
from simulator.analysis.published import PublishedRow
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")

CHECKS = (Path(__file__).parents[1] / "page_checks.js").read_text(encoding="utf-8")
MOST_BYTES = 1_500_000

SCENARIOS = {
    "serving step": ("decode_ep144_day6", []),
    "drafting": ("mtp_one_node", []),
    "bound": ("tpot_limit_cx7", []),
    "offload": ("offload_ktransformers", []),
    "collective": ("mpft_vs_mrft", ["vary.operation.gpus=[16, 64]",
                                    "vary.operation.bytes_per_gpu=[128 MiB]"]),
    "whole run": ("dense_16k_h100_incidents", ["pretraining.runs=4"]),
    "fleet": ("mooncake_conversation", ["requests.limit=60", "sample_interval=1 s",
                                        "published=[]"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None
    with chromium(program) as running:
        yield running


BARRIERS = """
axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations.flatMap(
  ({id, impact, nodes}) => nodes.map((node) =>
    `${impact}, ${id}: ${node.html.slice(0, 120)}: ${node.failureSummary}`)))
"""
"""Every barrier, whatever its impact."""


def barriers(browser: Browser) -> list[str]:
    """What axe-core finds on the page that is shown."""
    rules = pytest.importorskip("axe_core_python.base", reason="axe-core-python is not installed")
    browser.value(f"{rules.AXE_SCRIPT}; true")
    found: list[str] = browser.value(BARRIERS)
    return found


def check(browser: Browser, path: Path) -> None:
    """Hold one page against everything that is asked of all."""
    assert path.stat().st_size < MOST_BYTES
    for width in (1400, 800):
        for dark in (False, True):
            browser.open(path, width=width, dark=dark)
            assert browser.value(CHECKS) == [], (width, "dark" if dark else "light")
            assert browser.requests() == [path.resolve().as_uri()]
            assert barriers(browser) == [], (width, "dark" if dark else "light")


@pytest.mark.parametrize("kind", SCENARIOS)
def test_a_page_of_a_run_can_be_read(kind, browser, tmp_path):
    name, changes = SCENARIOS[kind]
    run = simulate(load_scenario(name, changes))
    JOB_REPORTS[run.scenario.job_name]().write(run, run.metrics, tmp_path / "run")
    check(browser, tmp_path / "run" / "report.html")


def shown(page: Page, path: Path) -> Path:
    path.write_text(render_page(page), encoding="utf-8")
    return path


def test_the_page_of_a_training_step_can_be_read(tables, browser, tmp_path):
    check(browser, shown(training_page(tables), tmp_path / "training.html"))


def test_the_page_of_a_sweep_can_be_read(swept, browser, tmp_path):
    from reports.sweep_page import sweep_page

    check(browser, shown(sweep_page(swept), tmp_path / "sweep.html"))


def test_pages_of_several_runs_can_be_read(tables, browser, tmp_path):
    runs = [("runs/a", tables.metrics), ("runs/b", tables.metrics | {"step_time_s": 1.5})]
    check(browser, shown(comparison_page(runs), tmp_path / "comparison.html"))
    found = {"a": [PublishedRow("step", "step_time_s", 20.0, 19.0, -0.05, "Table 4",
                                interval_80=(18.0, 21.0))]}  # fmt: skip
    check(browser, shown(validation_page(found), tmp_path / "validation.html"))
    check(browser, shown(index_page(tmp_path), tmp_path / "index.html"))


def test_pages_of_plans_and_of_several_clusters_can_be_read(browser, tmp_path):
    plan = training_plan_page(TRAINING_PLAN | {"budget": BOUGHT}, BOUNDS, "name: chosen\n")
    check(browser, shown(plan, tmp_path / "training_plan.html"))
    check(browser, shown(serving_plan_page(SERVING_PLANS, "name: mine\n"), tmp_path / "plan.html"))
    machines = machines_page("main", ["training.pp=8"], [H800, GB200, H20])
    check(browser, shown(machines, tmp_path / "machines.html"))


def test_pages_of_what_a_step_is_made_of_and_depends_on_can_be_read(tables, browser, tmp_path):
    scenario = load_scenario("dualpipe_h800_2048")
    check(browser, shown(sensitivity_page(scenario, FOUND), tmp_path / "sensitivity.html"))
    made_of = step_attribution_page(scenario, tables.metrics, 1.5)
    check(browser, shown(made_of, tmp_path / "attribution.html"))


def press(browser: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, **text)


def test_keys_walk_along_a_chart_and_zoom_all_of_its_group(tables, browser, tmp_path):
    browser.open(shown(training_page(tables), tmp_path / "training.html"), width=1400)
    browser.value("document.querySelector('#figure_pipeline_timeline .chart').focus()")
    press(browser, "ArrowRight")
    told = browser.value("document.querySelector('.tip').textContent")
    assert "rank 0" in told
    assert browser.value("document.querySelector('.tip').hidden") is False
    view = "document.querySelector('#figure_pipeline_timeline svg.plot').getAttribute('viewBox')"
    other = view.replace("pipeline_timeline", "overlapped_forward_and_backward")
    before, apart = browser.value(view).split(), browser.value(other)
    press(browser, "+")
    after = browser.value(view).split()
    assert float(after[2]) == pytest.approx(float(before[2]) / 2)
    assert browser.value(other) == apart, "another axis of time"
    press(browser, "0")
    assert [float(part) for part in browser.value(view).split()] == [float(p) for p in before]


def test_a_page_is_whole_without_its_script(tables, browser, tmp_path):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        path = shown(training_page(tables), tmp_path / "training.html")
        browser.open(path, width=1400)
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        assert browser.value("document.querySelectorAll('svg.sheet').length") == 7
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
