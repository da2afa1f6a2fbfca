"""The page of one job on several machines, of machines made up by hand."""

from made_up_plans import GB200, H20, H800

from reports.machines_page import machines_page
from reports.page import render_page


def test_the_answer_is_what_gives_most_costs_least_and_draws_least():
    answer = machines_page("main", ["training.pp=8"], [H800, GB200, H20]).answer
    assert (answer.headline.value, answer.headline.note) == ("6,000", "gb200_nvl72")
    assert [(figure.label, figure.value, figure.note) for figure in answer.figures] == [
        ("Least USD per million tokens", "0.370", "h800_2048"),
        ("Least joules per token", "0.200", "gb200_nvl72"),
        ("h800_2048", "20 s", "step on 2,048 h800_sxm"),
        ("gb200_nvl72", "40 s", "step on 256 gb200"),
    ]
    assert (answer.limits_label, answer.limits) == ("Cannot run it", "h20_32: does not fit")
    assert answer.changed == "training.pp=8"


def test_ratios_are_to_the_first_and_what_does_not_compare_is_said():
    page = machines_page("main", [], [H800, GB200, H20])
    side, unable = page.sections
    table = side.blocks[-1]
    step = next(row for row in table.cells if row[0].text == "step time")
    assert [(cell.text, cell.under) for cell in step[1:]] == [
        ("20 s", ""), ("40 s", "2.000 of the first"),
    ]  # fmt: skip
    assert "kernels of different kind (engine: h800_sxm; reference: gb200_reference)" in side.note
    assert "power of gb200: assumed the share of the board's limit that h100_sxm draw" in side.note
    assert [(chart.title, chart.y.title) for chart in side.blocks[:-1]] == [
        ("Tokens per second per GPU", "tokens/s"), ("USD per million tokens", "USD"),
        ("Joules per token", "J"),
    ]  # fmt: skip
    assert unable.blocks[0].rows == (("h20_32", "does not fit"),)
    assert page.answer.changed == "Nothing but the cluster."
    assert "gb200_nvl72" in render_page(page)


def test_where_every_cluster_runs_it_nothing_is_listed_as_unable():
    page = machines_page("main", [], [H800, GB200])
    assert [section.title for section in page.sections] == ["Side by side"]
    assert page.answer.limits == "No cluster."
