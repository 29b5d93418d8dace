"""What was measured of a model at one depth; None means not measured, and is printed nowhere."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .statistics import median_interval

MIN_PAIRS = 6  # of runs in turns: with fewer there is no 95 % interval
NARROW, WIDE = 1.1, 1.25  # upper end of a ratio's interval over its lower end
SEQUENCE_LENGTH = 2048  # tokens of a sequence whose cache is counted
MEMORY_SIZES = (24, 48, 80, 141, 192, 640, 1128)  # GB of GPUs, and of eight of them
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
    num_characters: int | None = None  # that the scored tokens stand for; None: not counted

    @property
    def loss_per_character(self) -> float | None:
        """Nats: what models with different tokens can be compared by; None: not known."""
        if not self.num_characters or self.num_tokens is None:
            return None
        return self.loss * self.num_tokens / self.num_characters

    @property
    def perplexity(self) -> float:
        """Of the scored tokens."""
        return math.exp(min(self.loss, 700))


@dataclass(frozen=True)
class SpeedRatio:
    """How many times the tokens per second of one model another one makes, from pairs of runs in turns."""

    ratio: float  # median over the pairs
    low: float  # 95 % confidence interval of it
    high: float
    num_pairs: int

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[float, float]]) -> "SpeedRatio":
        """Summarize (tokens per second of the one, of the other) measured right after each other."""
        ratio, low, high = median_interval([other / one for one, other in pairs])
        return cls(ratio, low, high, len(pairs))

    @property
    def is_narrow(self) -> bool:
        """Whether more pairs would say little more."""
        return self.num_pairs >= MIN_PAIRS and self.high <= self.low * NARROW

    @property
    def is_telling(self) -> bool:
        """Whether it says something: which of the two is faster, and about how much; or that they are equally fast."""
        is_sided = self.low > 1 or self.high < 1
        return self.is_narrow or (self.num_pairs >= MIN_PAIRS and is_sided and self.high <= self.low * WIDE)

    @property
    def spread(self) -> str:
        """The interval and where it comes from."""
        return f"{self.low:.2f}–{self.high:.2f}, {self.num_pairs} pairs in turns"

    def __str__(self) -> str:
        if not self.is_telling:
            return f"the machine was too busy to tell: {self.num_pairs} pairs of runs in turns differ too much"
        return f"{self.ratio:.2f}× ({self.spread})"


@dataclass(frozen=True)
class CacheSize:
    """What a model keeps of one sequence that it goes on with, in the dtype of the measurement.

    Attributes:
        growing: Bytes per token of all layers that keep so many tokens at most, and how many; None: all.
        fixed: Bytes of states that do not grow.
    """

    growing: tuple[tuple[int, int | None], ...]
    fixed: int = 0

    def num_bytes(self, num_tokens: int) -> int:
        """Of a sequence of so many tokens."""
        kept = (growth * min(num_tokens, window or num_tokens) for growth, window in self.growing)
        return self.fixed + sum(kept)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> "CacheSize":
        """Read it as JSON knows it."""
        return cls(tuple(map(tuple, data["growing"])), data["fixed"])


@dataclass(frozen=True)
class Measurement:
    """Measured facts about a model at one depth: the same in training, `evaluate` and `compare`."""

    depth: int
    num_parameters: int
    num_bytes: int | None = None  # of parameters and buffers in memory, in the dtype of the measurement
    cache: CacheSize | None = None  # of a sequence, as Transformers keeps it
    peak_memory_bytes: int | None = None  # of the process while it generated; on a GPU, of its memory
    load_seconds: float | None = None
    decode_tokens_per_second: float | None = (
        None  # greedy, batch of one, best of five runs; of the median of the pairs
    )
    decode_ratio: SpeedRatio | None = None  # to the untrimmed depth; None: the two were not timed in turns
    prefill_tokens_per_second: float | None = None  # eight prompts of 128 tokens, best of five runs
    device: str | None = None
    dtype: str | None = None
    precision: str | None = None  # in which quality was measured
    quality: dict[str, Quality] = field(default_factory=dict)  # by evaluation set

    @property
    def evaluation(self) -> Quality | None:
        """Quality on the run's own evaluation set; None: it was not measured, or there are several sets with names."""
        return self.quality.get(EVALUATION)

    def num_sequences(self, num_tokens: int, memory_bytes: int) -> int | None:
        """How many sequences of so many tokens fit beside the weights, by their bytes; None: not known."""
        if self.num_bytes is None or self.cache is None:
            return None
        return max(0, memory_bytes - self.num_bytes) // self.cache.num_bytes(num_tokens)

    def to_plain(self) -> dict[str, Any]:
        """The numbers as JSON knows them, perplexity included."""
        quality = {
            name: asdict(each) | {"perplexity": each.perplexity, "loss_per_character": each.loss_per_character}
            for name, each in self.quality.items()
        }
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
        ratio = None if data.get("decode_ratio") is None else SpeedRatio(**data["decode_ratio"])
        cache = None if data.get("cache") is None else CacheSize.from_plain(data["cache"])
        kept = {key: value for key, value in data.items() if key in known}
        return cls(**kept | {"quality": quality, "decode_ratio": ratio, "cache": cache})


def memory_beside(measured: Sequence[Measurement]) -> int:
    """GB of the smallest of usual GPUs, or of eight, in which the weights leave a fifth free."""
    largest = max((each.num_bytes or 0 for each in measured), default=0)
    return next((size for size in MEMORY_SIZES if 0.8 * size * 1e9 >= largest), MEMORY_SIZES[-1])
