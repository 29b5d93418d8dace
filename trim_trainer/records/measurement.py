"""What was measured of a model at one depth; None means not measured, and is printed nowhere."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

EVALUATION = "eval"  # the run's own evaluation set among those that a model was measured on


@dataclass(frozen=True)
class Quality:
    """What a model does on an evaluation set. None means that it does not apply."""

    num_examples: int
    num_tokens: int | None  # that the loss is the mean of; None: not known
    loss: float  # mean negative log-likelihood of the scored tokens of the right choices, nats
    accuracy: float | None = None
    majority_accuracy: float | None = None  # of the most frequent right answer, or place of it
    macro_f1: float | None = None  # where every example has the same choices

    @property
    def perplexity(self) -> float:
        """Of the scored tokens."""
        return math.exp(min(self.loss, 700))


@dataclass(frozen=True)
class Measurement:
    """Measured facts about a model at one depth: the same in training, `evaluate` and `compare`."""

    depth: int
    num_parameters: int
    num_bytes: int | None = None  # of parameters and buffers in memory, in the dtype of the measurement
    peak_memory_bytes: int | None = None  # of the process while it generated; on a GPU, of its memory
    load_seconds: float | None = None
    decode_tokens_per_second: float | None = None  # greedy, batch of one, best of five runs
    prefill_tokens_per_second: float | None = None  # eight prompts of 128 tokens, best of five runs
    device: str | None = None
    dtype: str | None = None
    precision: str | None = None  # in which quality was measured
    quality: dict[str, Quality] = field(default_factory=dict)  # by evaluation set

    @property
    def evaluation(self) -> Quality | None:
        """Quality on the run's own evaluation set; None: it was not measured, or there are several sets with names."""
        return self.quality.get(EVALUATION)

    def to_plain(self) -> dict[str, Any]:
        """The numbers as JSON knows them, perplexity included."""
        quality = {name: asdict(each) | {"perplexity": each.perplexity} for name, each in self.quality.items()}
        return asdict(self) | {"quality": quality}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> "Measurement":
        """Read what `to_plain` returns; other keys are left alone."""
        known = {entry.name for entry in fields(cls)}
        of_quality = {entry.name for entry in fields(Quality)}
        quality = {
            name: Quality(**{key: value for key, value in each.items() if key in of_quality})
            for name, each in data.get("quality", {}).items()
        }
        return cls(**{key: value for key, value in data.items() if key in known} | {"quality": quality})
