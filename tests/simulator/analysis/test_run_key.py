"""A run's key changes with anything that the run rests on, and with nothing else."""

import pytest

from simulator.analysis import run_key
from simulator.analysis.run_key import program_digest
from simulator.scenario.files import load_scenario

POPULARITY = "layer,expert,rows\n" + "".join(f"{layer},0,1\n" for layer in range(58))


@pytest.fixture
def popularity(tmp_path):
    path = tmp_path / "popularity.csv"
    path.write_text(POPULARITY)
    return path


def key(*changes, scenario="decode_ep128_profile"):
    return run_key.run_key(load_scenario(scenario, changes))


def of_file(path):
    return key(f"skew={{rows: {{file: {path}}}}}")


def test_the_content_of_a_file_that_a_scenario_names_counts(popularity):
    before = of_file(popularity)
    assert of_file(popularity) == before
    popularity.write_text(POPULARITY.replace("0,0,1", "0,0,2"))
    assert of_file(popularity) != before


def test_so_does_a_file_that_a_named_file_names(popularity, tmp_path):
    fleet = "day6_service"
    step = tmp_path / "step.yaml"
    step.write_text(f"skew: {{rows: {{file: {popularity}}}}}\n")
    change = f"decode.decode_step.scenario={step}"
    before = key(change, scenario=fleet)
    popularity.write_text(POPULARITY + "0,1,1\n")
    assert key(change, scenario=fleet) != before


def test_a_value_counts_and_the_way_it_is_written_does_not():
    assert key("seed=1") != key()
    assert key("cluster.node.nic.bandwidth=400 Gbit/s") == key()


def test_a_line_of_the_program_or_of_its_data_counts(tmp_path, monkeypatch):
    class Part:
        __file__ = str(tmp_path / "__init__.py")

    (tmp_path / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(run_key, "_PARTS", (Part,))
    digests = []
    for text in ("x: 1\n", "x: 2\n"):
        (tmp_path / "data.yaml").write_text(text)
        digests.append(program_digest.__wrapped__())
    assert digests[0] != digests[1]
    (tmp_path / "note.txt").write_text("not read by the program")
    assert program_digest.__wrapped__() == digests[1]
