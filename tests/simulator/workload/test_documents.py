"""Attention of packed documents is the sum of the squares of their parts, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.scenario.documents import Documents
from simulator.workload.documents import packed_work, read_lengths, with_documents

CORE = Operator(
    name="attention.core",
    kind="attention_forward",
    phase="forward",
    segment="attention",
    dtype="bfloat16",
    out_dtype="bfloat16",
    sizes=(
        ("heads", 128),
        ("kv_length", 4096),
        ("qk_dim", 192),
        ("query_length", 4096),
        ("sequences", 1),
        ("v_dim", 128),
    ),
    recompute=False,
    accumulate=False,
)


def packed(lengths, *, sequence_length, sequences=1):
    documents = Documents.model_validate({"lengths": lengths})
    rng = np.random.default_rng(0)
    return packed_work(documents, sequence_length=sequence_length, sequences=sequences, rng=rng)


def core(share):
    return with_documents(lambda kind, phase: [CORE], share)("moe", "forward")[0]


def test_documents_that_divide_a_sequence_attend_to_their_share_of_it():
    """Four of 1,024 in 4,096: 4 x 1,024^2 / 4,096^2, in every micro-batch."""
    found = packed([{"tokens": 1024, "share": 1}], sequence_length=4096)
    assert found.share == 0.25
    assert found.spread == 0.0


def test_documents_are_cut_where_a_sequence_ends():
    """Documents of 3 in sequences of 4: 3+1, 2+2, 1+3 in turn, of squares 10, 8, 10 of 16."""
    found = packed([{"tokens": 3, "share": 1}], sequence_length=4)
    works = found.relative * found.share * 16
    assert works[:6].tolist() == pytest.approx([10, 8, 10, 10, 8, 10])
    assert found.share == pytest.approx(28 / 48, rel=1e-3)


def test_a_document_as_long_as_a_sequence_or_longer_is_the_whole_sequence():
    for tokens in (8, 16):
        found = packed([{"tokens": tokens, "share": 1}], sequence_length=8, sequences=2)
        assert (found.share, found.spread) == (1.0, 0.0)


def test_two_lengths_differ_between_micro_batches():
    """Sequences of one document of 8 or two of 4: 64 or 32, and two sequences vary half as much."""
    lengths = [{"tokens": 8, "share": 1}, {"tokens": 8 * 10**6, "share": 1e-9}]
    assert packed(lengths, sequence_length=8).spread == 0.0
    mixed = [{"tokens": 4, "share": 2}, {"tokens": 8, "share": 1}]
    one = packed(mixed, sequence_length=8)
    four = packed(mixed, sequence_length=8, sequences=4)
    assert one.share == pytest.approx(four.share, rel=0.02)
    assert four.spread < one.spread


def test_the_median_of_lognormal_lengths_without_spread_is_their_length():
    documents = Documents(median=1024, sigma=0.0)
    rng = np.random.default_rng(0)
    assert packed_work(documents, sequence_length=4096, sequences=1, rng=rng).share == 0.25


def test_a_core_does_the_share_of_the_work_in_equal_documents():
    """A quarter is four documents of 1,024; 0.7 is two of 4,096 x sqrt(0.35) = 2,423 tokens."""
    assert dict(core(0.25).sizes) | {"sequences": 4, "query_length": 1024} == dict(core(0.25).sizes)
    assert core(0.25).flops == CORE.flops / 4
    sizes = dict(core(0.7).sizes)
    assert (sizes["sequences"], sizes["query_length"], sizes["kv_length"]) == (2, 2423, 2423)
    assert core(0.7).flops == pytest.approx(0.7 * CORE.flops, rel=1e-3)


def test_documents_as_long_as_sequences_change_nothing():
    assert core(1.0) == CORE


def test_lengths_are_read_from_a_file(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("tokens,documents\n1024,3\n4096,1\n", encoding="utf-8")
    tokens, documents = read_lengths(path)
    assert (tokens.tolist(), documents.tolist()) == ([1024, 4096], [3.0, 1.0])
    given = Documents(file=str(path))
    rng = np.random.default_rng(0)
    listed = packed(
        [{"tokens": 1024, "share": 3}, {"tokens": 4096, "share": 1}], sequence_length=4096
    )
    found = packed_work(given, sequence_length=4096, sequences=1, rng=rng)
    assert found.share == listed.share


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens\n4\n", r"lengths.csv: columns \['tokens'\]; allowed: tokens, documents"),
        ("tokens,documents\n", "has no documents; allowed: at least one length"),
        ("tokens,documents\n4,1\nx,1\n", "line 3: .* are not two numbers"),
        ("tokens,documents\n0,1\n", "line 2: tokens 0, documents 1; allowed: at least 1 token"),
        ("tokens,documents\n4,inf\n", "line 2: tokens 4, documents inf; allowed"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(text, message, tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_lengths(path)
    assert "\n" not in str(error.value)


def test_sparse_attention_is_refused():
    indexer = [replace(CORE, name="attention.indexer.scores")]
    with pytest.raises(ValueError, match="sparse attention selects among the keys of whole"):
        with_documents(lambda kind, phase: indexer, 0.5)("moe", "forward")
