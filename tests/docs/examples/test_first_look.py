"""The notebook runs, cell by cell, and prints what it shows.

`python tests/docs/examples/test_first_look.py` runs it and writes what it prints into it.
"""

import contextlib
import io
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[3] / "docs" / "examples" / "first_look.ipynb"


def printed(notebook):
    """What each cell of code prints, run one after another in one namespace."""
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as text:
                exec("".join(cell["source"]), names)
            yield cell, text.getvalue()


def test_each_cell_prints_what_the_notebook_shows():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    shown = [
        (text, "".join("".join(output["text"]) for output in cell["outputs"]))
        for cell, text in printed(notebook)
    ]
    assert len(shown) == 4
    assert [now for now, _ in shown] == [before for _, before in shown]


if __name__ == "__main__":
    whole = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for number, (cell, text) in enumerate(printed(whole), 1):
        output = {"name": "stdout", "output_type": "stream", "text": text.splitlines(True)}
        cell |= {"execution_count": number, "outputs": [output] if text else []}
    NOTEBOOK.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
