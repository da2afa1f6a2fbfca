"""Plans of a service in docs/plan.md and docs/questions.md are what the command gives."""

import json

import pytest
from command_line import dsv3sim
from doc_commands import ROOT, run

ASKED = (
    "plan",
    "serving",
    "--gpu",
    "h200",
    "--rate",
    "100",
    "--prompt",
    "4096",
    "--output",
    "1024",
)


def as_on_the_page(row):
    times = f"{row['ttft_s']:.3g} s | {row['tpot_s'] * 1e3:.3g} ms"
    return f"| {row['fleet']} | {row['nodes']:.0f} | {times} |"


@pytest.mark.slow
def test_the_service_of_the_page_takes_the_nodes_and_costs_that_it_shows(tmp_path):
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert " ".join(("dsv3sim", *ASKED)) in page
    done = dsv3sim(*ASKED, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["plans"]
    assert found["nodes"] == 14.0
    assert found["usd_per_hour"] == pytest.approx(14 * 8 * 2.0)
    # 8 and 6 nodes of 16 USD/h for 1,475 M tokens in and 368.7 M out per hour.
    assert found["usd_per_million_tokens_in"] == pytest.approx(0.0868, abs=5e-5)
    assert found["usd_per_million_tokens_out"] == pytest.approx(0.2604, abs=5e-5)
    shown = [row["fleet"] for row in found["simulated"] if as_on_the_page(row) in page]
    assert shown[0] == "prefill 8 x EP8, 8 redundant, passes of 4K; decode 6 x EP8, MTP"
    assert len(shown) == 6
    of_limits = [f"| {row['nodes']:.0f} | {row['fleet']} |" in page for row in found["sensitivity"]]
    assert of_limits == [True] * 5


@pytest.mark.slow
def test_the_questions_show_what_the_command_prints_without_drafted_tokens(tmp_path):
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    block = next(part for part in page.split("```\n") if part.startswith("$ dsv3sim plan serving"))
    first, second, *shown = block.splitlines()
    line = f"{first.removeprefix('$ ').rstrip(chr(92))}{second.strip()}"
    bounded = run(line, tmp_path)
    assert [row.split() for row in bounded.splitlines()] == [row.split() for row in shown]
