"""What was measured of a model at one depth; None means not measured, and is printed nowhere."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """Measured facts about the model at one depth. None means not measured, and is printed nowhere."""

    name: str  # "untrimmed", "trimmed"
    depth: int
    num_parameters: int
    num_bytes: int | None = None  # of parameters and buffers in memory, in the dtype of the measurement
    num_examples: int | None = None
    accuracy: float | None = None
    majority_accuracy: float | None = None  # of the most frequent right answer, or place of it
    macro_f1: float | None = None  # where every example has the same choices
    loss: float | None = None  # mean negative log-likelihood of the scored tokens, nats
    tokens_per_second: float | None = None  # greedy decoding, batch of one, best of five runs
    device: str | None = None
    dtype: str | None = None
    precision: str | None = None  # in which accuracy and loss were computed


@dataclass(frozen=True)
class Quality:
    """What a model does on an evaluation set. None means that it does not apply."""

    num_examples: int
    num_tokens: int  # that the loss is the mean of
    loss: float  # mean negative log-likelihood of the scored tokens of the right choices, nats
    accuracy: float | None = None
    majority_accuracy: float | None = None  # of the most frequent right answer, or place of it
    macro_f1: float | None = None  # where every example has the same choices

    @property
    def perplexity(self) -> float:
        """Of the scored tokens."""
        return math.exp(min(self.loss, 700))
