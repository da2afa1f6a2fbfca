"""The lengths of the documents that are packed into training sequences."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from hardware_profiles.fields import Profile


class DocumentsOfLength(Profile):
    """Some of the documents, all of one length."""

    tokens: PositiveInt
    """Length of each."""
    share: float = Field(gt=0.0)
    """Of all documents by number; shares need not sum to one."""


class Documents(Profile):
    """How long documents are, in one of three forms.

    They are packed one after the other and cut where a sequence ends, and a token attends to those
    of its own document only. Without this block a token attends to all before it in its sequence,
    as in DeepSeek-V3's pre-training (arXiv 2412.19437, section 4.1).
    """

    lengths: tuple[DocumentsOfLength, ...] = ()
    """Parts of the documents, each all of one length."""
    median: PositiveInt | None = None
    """Tokens, of a lognormal distribution."""
    sigma: float | None = Field(default=None, ge=0.0, le=5.0)
    """Sd of the logarithm of a length, beside `median`."""
    file: str | None = None
    """CSV file with the columns tokens and documents: how many there are of each length."""

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        forms = (bool(self.lengths), self.median is not None, self.file is not None)
        if sum(forms) != 1:
            raise ValueError("documents: allowed: one of lengths, median with sigma, file")
        if (self.median is None) != (self.sigma is None):
            raise ValueError("documents: allowed: median and sigma together")
        return self
