"""The page of what a step's time depends on."""

from sensitivities import FOUND

from reports.sensitivity_page import sensitivity_page
from simulator.scenario.files import load_scenario


def test_the_answer_names_the_strongest_inputs_and_how_many_can_do_what_is_asked():
    page = sensitivity_page(load_scenario("dualpipe_h800_2048"), FOUND)
    assert (page.answer.headline.value, page.answer.headline.note) == ("18 s", "ideal ranks")
    assert page.answer.limits == (
        "HBM -0.50, NIC -0.10, PCIe +0.00: relative change of the answer over that of the input."
    )
    assert [figure.value for figure in page.answer.figures] == ["3", "1"]
    chart, table = page.sections[0].blocks
    assert chart.title == "What 18 s depends on"
    assert [cell.text for cell in table.cells[0]] == [
        "HBM", "3.35 TB/s", "-0.500", "0.400%", "0.600%", "x 1.25",
    ]  # fmt: skip
