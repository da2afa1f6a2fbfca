"""Documents have one form of lengths."""

import pytest

from simulator.scenario.files import load_scenario
from simulator.scenario.training import TrainingJob

MAIN = "dualpipe_h800_2048"


def test_a_job_packs_no_documents_unless_it_says_so():
    job = load_scenario(MAIN).job
    assert isinstance(job, TrainingJob)
    assert job.documents is None


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("{}", "allowed: one of lengths, median with sigma, file"),
        ("{median: 900, sigma: 1, file: a.csv}", "allowed: one of lengths, median with sigma"),
        ("{median: 900}", "allowed: median and sigma together"),
        ("{lengths: [{tokens: 4096, share: 1}], sigma: 1}", "allowed: median and sigma together"),
        ("{median: 900, sigma: 6}", "training.documents.sigma: 6 is not allowed"),
        ("{lengths: [{tokens: 0, share: 1}]}", "tokens: 0 is not allowed"),
        ("{lengths: [{tokens: 5, share: 0}]}", "share: 0 is not allowed"),
    ],
)
def test_lengths_that_cannot_be_are_one_clear_line(documents, message):
    with pytest.raises(ValueError, match=message) as error:
        load_scenario(MAIN, [f"training.documents={documents}"])
    assert "\n" not in str(error.value)
