"""What a run dropped, when and why: plain data, saved as `trim_history.json` beside the weights."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .facts import CardFacts
from .files import HISTORY_NAME
from .json_files import damaged, parse_json
from .measurement import EVALUATION, Measurement
from .vocabulary import VocabularyRecord

FORMAT_VERSION = 3  # 1 had measurements by name, and one evaluation set; 2 had whole layers only

# What went at once: a layer; or a seam, the layer whose MLP half went and the one whose attention half did.
Dropped = int | tuple[int, int]


@dataclass(frozen=True)
class Round:
    """One calibration of all layers that were left, and what followed from it.

    Layers carry the numbers they had in the untrimmed model. `scores`, `activation_norms` and
    `num_examples` are parallel to `layers`; those of seams to the places between them.
    The first round of a run drops nothing: it chooses the layers of the sparse update. Where somebody named the layers,
    there are no scores and no metric.
    """

    step: int
    layers: tuple[int, ...]
    scores: tuple[float, ...]
    metric: float | None  # on the calibration set, before this round's drop; None: nothing was calibrated
    seconds: float  # that the calibration took
    activation_norms: tuple[float, ...] | None = None
    dropped: tuple[Dropped, ...] = ()
    metric_after: float | None = None  # on the calibration set, right after the drop; None: nothing was dropped
    decode_tokens_per_second: float | None = None  # greedy, right after the drop; None: not measured
    trained_layers: tuple[int, ...] | None = None  # None: all parameters train
    num_examples: tuple[int, ...] | None = None  # that each score comes from; None: all of the calibration set
    contenders: tuple[Dropped, ...] | None = None  # between which position decided; None: scores did
    drop_seconds: float = 0.0  # that dropping took, and solving for what takes over
    mlps: tuple[int, ...] | None = None  # parallel to `layers`: whose MLP half each has; None: its own
    seam_scores: tuple[float, ...] | None = None  # None: seams were not scored
    seam_num_examples: tuple[int, ...] | None = None

    @property
    def depth_after(self) -> int:
        """Number of layers that are left after this round."""
        return len(self.layers) - len(self.dropped)

    def score_of(self, dropped: Dropped) -> float:
        """Importance score of a layer, by its original number, or of a seam; higher = keep."""
        if isinstance(dropped, tuple):
            return self.seam_scores[(self.mlps or self.layers).index(dropped[0])]
        return self.scores[self.layers.index(dropped)]


@dataclass(frozen=True)
class TrimHistory:
    """The whole run: every round, every measurement. Adding returns a new history."""

    num_layers: int  # of the untrimmed model
    target_layers: int
    importance: str
    calibration_metric: str
    calibration_size: int
    compensation_size: int = 0  # training examples on which layers in front of dropped ones took over
    rounds: tuple[Round, ...] = ()
    untrimmed: Measurement | None = None  # before training
    measurements: tuple[Measurement, ...] = ()  # of depths that were trained, one each
    stopped: str | None = None  # why the run ended above the target; None: it did not
    vocabulary: VocabularyRecord | None = None  # what a smaller one kept; None: it is the whole one
    card: CardFacts | None = None  # what the model card says beside this; None: nothing was saved yet
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What went, in that order: original numbers of layers, and of the layers at seams."""
        return tuple(layer for a_round in self.rounds for layer in a_round.dropped)

    @property
    def halves(self) -> tuple[tuple[int, int], ...]:
        """Of each layer that is left, original numbers of those that it has its attention and its MLP half from."""
        kept, mlps = self._without(0), self._without(1)
        return tuple(zip(kept, mlps, strict=True))

    @property
    def kept(self) -> tuple[int, ...]:
        """Original numbers of the layers that are left, in model order; of a joined one that of its attention half."""
        return self._without(0)

    @property
    def joined(self) -> tuple[tuple[int, int], ...]:
        """Those of `halves` that are of two layers."""
        return tuple(pair for pair in self.halves if pair[0] != pair[1])

    def _without(self, half: int) -> tuple[int, ...]:
        gone = set()
        for a_round in self.rounds:
            mlp_of = dict(zip(a_round.layers, a_round.mlps or a_round.layers, strict=True))
            for each in a_round.dropped:
                gone.add((each[1], each[0])[half] if isinstance(each, tuple) else (each, mlp_of[each])[half])
        return tuple(layer for layer in range(self.num_layers) if layer not in gone)

    @property
    def depth(self) -> int:
        """Number of layers that are left."""
        return len(self.kept)

    @property
    def is_above_target(self) -> bool:
        """Whether more layers are left than were asked for."""
        return self.depth > self.target_layers

    @property
    def drops(self) -> tuple[Round, ...]:
        """The rounds in which layers went."""
        return tuple(a_round for a_round in self.rounds if a_round.dropped)

    @property
    def named(self) -> tuple[Dropped, ...]:
        """What somebody named, and no score chose; as in `dropped`."""
        return tuple(layer for a_round in self.drops if not a_round.scores for layer in a_round.dropped)

    @property
    def is_by_hand(self) -> bool:
        """Whether what went was named, layers or tokens, and nothing was ever calibrated for it or trained."""
        return bool(self.named) or self.calibration_size == 0

    @property
    def scored(self) -> "TrimHistory":
        """The same without the rounds that nothing was calibrated for."""
        return replace(self, rounds=tuple(a_round for a_round in self.rounds if a_round.scores))

    @property
    def calibration_seconds(self) -> float:
        """What scoring and dropping took, over all rounds."""
        return sum(a_round.seconds + a_round.drop_seconds for a_round in self.rounds)

    @property
    def trained_layers(self) -> tuple[int, ...] | None:
        """Original numbers of the layers that train now; None: all parameters do."""
        return self.rounds[-1].trained_layers if self.rounds else None

    @property
    def trimmed(self) -> Measurement | None:
        """The measurement at the depth that is left now, after training; None: it was not measured."""
        return self.measured(self.depth)

    def measured(self, depth: int) -> Measurement | None:
        """The measurement of the model trained at that depth, or None."""
        return next((measurement for measurement in self.measurements if measurement.depth == depth), None)

    def add(self, entry: Round | Measurement) -> "TrimHistory":
        """Return a history with one more round or measurement; a measurement replaces the one of its depth."""
        if isinstance(entry, Round):
            return replace(self, rounds=(*self.rounds, entry))
        others = tuple(measurement for measurement in self.measurements if measurement.depth != entry.depth)
        return replace(self, measurements=(*others, entry))

    def begun_anew(self, target_layers: int) -> "TrimHistory":
        """Return the history of a run with another target that has dropped and measured nothing yet."""
        return replace(self, target_layers=target_layers, rounds=(), measurements=(), stopped=None, card=None)

    def add_named(self, layers: Iterable[int], seams: Iterable[tuple[int, int]] = ()) -> "TrimHistory":
        """Return a history in which layers and seams went that somebody named, by their numbers among those that were left."""
        kept, mlps = self.kept, self._without(1)
        step = self.rounds[-1].step if self.rounds else 0
        dropped = [kept[layer] for layer in sorted(layers)]
        dropped += [(mlps[front], kept[back]) for front, back in sorted(seams)]
        entry = Round(step, kept, (), None, 0.0, dropped=tuple(dropped), mlps=None if mlps == kept else mlps)
        return replace(self.add(entry), target_layers=entry.depth_after, stopped=None)

    def save(self, directory: str | Path) -> Path:
        """Write `trim_history.json` into `directory` and return its path."""
        path = Path(directory) / HISTORY_NAME
        path.write_text(self.to_json() + "\n", encoding="utf-8")
        return path

    def to_json(self) -> str:
        """The history as text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, directory: str | Path) -> "TrimHistory":
        """Read `trim_history.json` from `directory`.

        Raises:
            FileNotFoundError: `directory` holds no history.
            ValueError: the file was written by a newer format, or is damaged.
        """
        path = Path(directory) / HISTORY_NAME
        return cls.from_json(path.read_bytes(), str(path))

    @classmethod
    def from_json(cls, text: str | bytes, source: str = HISTORY_NAME) -> "TrimHistory":
        """Read what `to_json` returns; `source` is the file that it comes from. Raises a ValueError as `load` does."""
        data = parse_json(text, source)
        version = data.get("format_version")
        if not isinstance(version, int):
            raise damaged(source, f"`format_version` is {version!r}, a number was expected")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"`format_version` of {source!r} is {version}, this version of trim_trainer reads up to {FORMAT_VERSION}. "
                "Upgrade trim_trainer."
            )
        try:
            return cls._from_plain(data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise damaged(source, error) from error

    @classmethod
    def _from_plain(cls, data: dict[str, Any]) -> "TrimHistory":
        if data["format_version"] == 1:
            data = _from_format_1(data)
        data["format_version"] = FORMAT_VERSION
        rounds = tuple(Round(**{key: _tuples(value) for key, value in entry.items()}) for entry in data.pop("rounds"))
        measurements = tuple(Measurement.from_plain(entry) for entry in data.pop("measurements"))
        untrimmed, card = data.pop("untrimmed"), data.pop("card")
        vocabulary = data.pop("vocabulary", None)
        return cls(
            rounds=rounds,
            measurements=measurements,
            untrimmed=None if untrimmed is None else Measurement.from_plain(untrimmed),
            card=None if card is None else CardFacts.from_plain(card),
            vocabulary=None if vocabulary is None else VocabularyRecord.from_plain(vocabulary),
            **data,
        )


def _tuples(value):
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def place_of(dropped: Dropped) -> float:
    """Where it is among the layers: a seam is in the middle of its two."""
    return sum(dropped) / 2 if isinstance(dropped, tuple) else dropped


def name_dropped(dropped: Iterable[Dropped]) -> str:
    """`3, 17`, or with seams `3, 18 | 19`."""
    return ", ".join(" | ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in dropped)


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """The same history with measurements by depth, and quality by evaluation set."""
    by_name = {entry["name"]: _measurement_from_format_1(entry) for entry in data["measurements"]}
    rounds = [{_renamed(name): value for name, value in entry.items()} for entry in data["rounds"]]
    untrimmed = by_name.pop("untrimmed", None)
    new = {"rounds": rounds, "untrimmed": untrimmed, "measurements": list(by_name.values())}
    return {"card": None} | data | new


def _measurement_from_format_1(entry: dict[str, Any]) -> dict[str, Any]:
    facts = {_renamed(name): value for name, value in entry.items()}
    if entry.get("loss") is not None:
        facts["quality"] = {EVALUATION: {"num_tokens": None} | facts}
    return facts


def _renamed(name: str) -> str:
    return "decode_tokens_per_second" if name == "tokens_per_second" else name
