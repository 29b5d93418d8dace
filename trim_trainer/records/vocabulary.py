"""What a smaller vocabulary kept: plain data, part of the history."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextShare:
    """How texts fare with the smaller vocabulary.

    Attributes:
        name: Of the texts, in words.
        num_texts: That were looked at.
        num_before: Their tokens with the whole vocabulary.
        num_kept: Of these, those that stayed.
        num_after: Their tokens with the smaller one.
    """

    name: str
    num_texts: int
    num_before: int
    num_kept: int
    num_after: int

    @property
    def kept_ratio(self) -> float:
        """Share of the tokens that are as before."""
        return self.num_kept / max(self.num_before, 1)


@dataclass(frozen=True)
class VocabularyRecord:
    """A vocabulary that was made smaller before anything was trained.

    Attributes:
        num_before: Tokens of the tokenizer.
        num_tokens: That stayed.
        num_parameters: Of the model with the whole vocabulary.
        kept: A digest of the ids that stayed.
        texts: How texts fare.
    """

    num_before: int
    num_tokens: int
    num_parameters: int
    kept: str
    texts: tuple[TextShare, ...] = ()

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> "VocabularyRecord":
        """Read it as JSON knows it."""
        return cls(**data | {"texts": tuple(TextShare(**each) for each in data["texts"])})


def digest_ids(ids: Iterable[int]) -> str:
    """The same for equal ids in equal order, and for them only."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]
