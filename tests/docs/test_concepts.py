"""The numbers worked out on the page of concepts are right."""

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "concepts.md"


def test_every_number_worked_out_is_right():
    blocks = re.findall(r"^```pycon\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    result = doctest.DocTestRunner(verbose=False).run(examples)
    assert result.attempted >= 25
    assert result.failed == 0
