"""Data depend on seed and step alone, and the Markov chain has the entropy it says."""

import numpy as np
import pytest
import torch

from reference_model.data import (
    MarkovSource,
    markov_source,
    open_source,
    standard_library,
)


def test_the_entropy_of_a_chain_is_that_of_its_rows_weighted_by_their_frequency():
    """Two symbols, left with 1/4 and 1/2: stationary 2/3 and 1/3."""
    source = MarkovSource(np.array([[0.75, 0.25], [0.5, 0.5]]), seed=0)
    assert source.stationary == pytest.approx([2 / 3, 1 / 3])
    first = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert source.entropy == pytest.approx(2 / 3 * first + 1 / 3 * np.log(2))


def test_sampled_tokens_cost_the_entropy_under_the_true_chain():
    source = markov_source(symbols=16, concentration=0.3, seed=3)
    tokens = source.batch(0, sequences=64, length=512).numpy()
    cost = -np.log(source.transitions[tokens[:, :-1], tokens[:, 1:]])
    assert cost.mean() == pytest.approx(source.entropy, rel=0.02)


@pytest.mark.parametrize("name", ["markov", "stdlib"])
def test_a_batch_depends_on_seed_and_step_alone(name):
    def batch(seed, step):
        source = open_source(name, symbols=8, concentration=0.2, seed=seed)
        return source.batch(step, sequences=2, length=32)

    assert torch.equal(batch(1, 5), batch(1, 5))
    assert not torch.equal(batch(1, 5), batch(1, 6))
    assert not torch.equal(batch(1, 5), batch(2, 5))


def test_held_out_text_is_not_trained_on(tmp_path):
    (tmp_path / "a.py").write_bytes(b"a" * 90 + b"z" * 10)
    source = standard_library(seed=0, folder=tmp_path)
    assert set(source.batch(0, sequences=50, length=8).flatten().tolist()) == {ord("a")}
    assert set(source.held_out(0, sequences=50, length=8).flatten().tolist()) == {ord("z")}


def test_the_standard_library_is_read_as_bytes():
    source = standard_library(seed=0)
    assert source.vocabulary == 256
    assert source.entropy is None
    assert source.text.size > 2**20
    assert "SHA-256" in source.description


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "wiki"}, "data 'wiki' is not one of"),
        ({"symbols": 1}, "symbols = 1 must be at least 2"),
        ({"concentration": 0.0}, r"concentration = 0.0 must be above 0"),
    ],
)
def test_impossible_sources_are_refused(arguments, message):
    given = {"name": "markov", "symbols": 8, "concentration": 0.1, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        open_source(given.pop("name"), **given)


def test_text_shorter_than_a_window_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.py file"):
        standard_library(seed=0, folder=tmp_path)
    (tmp_path / "a.py").write_bytes(b"short")
    with pytest.raises(ValueError, match="no window of 8 in 4 bytes"):
        standard_library(seed=0, folder=tmp_path).batch(0, sequences=1, length=8)
