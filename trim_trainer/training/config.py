"""TrimConfig: SFTConfig plus the fields that say how far, when and by what measure layers are dropped."""

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from ..checkpoints.precision import AUTO, DTYPES
from ..data.metrics import METRICS
from ..importance.criteria import find_criterion
from ..importance.unit import LAYER, UNITS, check_unit

STRATEGIES = ("epoch", "steps")


@dataclass
class TrimConfig(SFTConfig):
    """Configuration of [`TrimTrainer`]: everything of [`trl.SFTConfig`], and the fields below.

    With neither `target_layers` nor `target_ratio` no layer is dropped and training is exactly SFTTrainer's.
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS

    target_layers: int | None = field(
        default=None,
        metadata={"help": "Depth to reach, in layers: at least 1 and below the model's depth."},
    )
    target_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of the layers to drop, in (0, 1). Instead of `target_layers`."},
    )
    trim_unit: str = field(
        default=LAYER,
        metadata={
            "help": "What goes at a time: 'layer', a layer; 'sublayer', two neighbouring halves, of one layer or the MLP half of "
            "one and the attention half of the next, whose other halves become one layer. Either way one layer less. Only for "
            "`importance='late_sensitivity'` and `'sensitivity'`.",
            "choices": list(UNITS),
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that stay, special and added ones included: those of the training and calibration texts, all bytes, "
            "and the most frequent of the rest. The tokenizer, embedding and head are made smaller before training; text all of "
            "whose tokens stayed is encoded as before. None: all stay. Only with a target."
        },
    )
    vocab_corpus: str | None = field(
        default=None,
        metadata={
            "help": "Texts by which the most frequent tokens are found that stay beside those of the task: a Hub data set, a "
            "folder or a file. None: the tokenizer's own order says which they are. Only with `vocab_size`."
        },
    )
    trim_strategy: str = field(
        default="steps",
        metadata={
            "help": "When layers are dropped: 'epoch' at the end of each epoch, 'steps' every `trim_steps` steps.",
            "choices": list(STRATEGIES),
        },
    )
    trim_steps: float | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps between two drops; below 1 a share of all steps. None spreads the drops evenly "
            "and leaves the last four fifths of the run to heal, with `save_depths` that are not healed the second half. Only for "
            "`trim_strategy='steps'`."
        },
    )
    trim_delay: float = field(
        default=0,
        metadata={
            "help": "Steps or epochs, depending on `trim_strategy`, before the first drop can happen; below 1 a share of all "
            "steps."
        },
    )
    layers_per_trim: int | None = field(
        default=None, metadata={"help": "Layers dropped each time, at least 1. None: a fifth of the model's."}
    )
    importance: str = field(
        default="late_sensitivity",
        metadata={"help": "Criterion by which layers are chosen, a name in `trim_trainer.CRITERIA`."},
    )
    calibration_size: int = field(
        default=24,
        metadata={
            "help": "Examples of the calibration set. Without a calibration data set they are held out of the "
            "training set, never taken from the evaluation set."
        },
    )
    calibration_metric: str | None = field(
        default="loss",
        metadata={
            "help": "What a layer's removal is judged by on the calibration set: 'accuracy' over the `choices`, or "
            "'loss' of the right completion. None: accuracy if the examples have choices, else loss.",
            "choices": [*METRICS, None],
        },
    )
    scan_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that one pass of a calibration carries at most, over all candidate layers. Bounds its memory, "
            "whatever the size of the calibration set. None: 16384, on a CPU 4096, which is faster there."
        },
    )
    racing_confidence: float | None = field(
        default=None,
        metadata={
            "help": "Confidence, in (0.5, 1), at which a layer that is worse than the best on part of the calibration set "
            "is not scored on the rest. None scores every layer on every example. Only for `importance='late_sensitivity'` and `'sensitivity'`."
        },
    )
    sparse_update_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the layers that trains, in (0, 1], the paper's quarter is 0.25: those most likely to be kept. "
            "Embeddings, head and the other layers are frozen, which saves memory. None trains all parameters. PEFT adapters "
            "train in all layers in any case."
        },
    )
    distill_from: str | None = field(
        default=None,
        metadata={
            "help": "Teacher: a checkpoint of the same vocabulary, such as the model fine-tuned at full depth, whose "
            "distribution at each scored position is learned beside the labels. It runs once per example."
        },
    )
    distill_weight: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the divergence from the teacher in the loss, in (0, 1]; the labels have the rest."
        },
    )
    distill_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of teacher and model in that divergence, above 0."}
    )
    compensation_size: int | None = field(
        default=None,
        metadata={
            "help": "Training examples on which the layer in front of dropped ones takes over, by least squares, what they "
            "added (ReplaceMe); a layer is then scored as it would be dropped, with that. 0: nothing takes over. "
            "None: 64 where weights can be solved for, which an adapter, quantized weights, FSDP and some layers rule out, "
            "else 0."
        },
    )
    scale_learning_rate: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the learning rate rises as layers go, times the layers of the untrimmed model over those that "
            "are left: `learning_rate` is that of full depth, the lowest of those that are as good there. Set it to False unless "
            "full depth is as good at a rate so high: on Qwen2.5 0.5B one that rose cost 10 points. None: it does, unless a "
            "norm or experts stand between what a layer adds and the hidden state, as in Gemma 2 and 3 or OLMo 2. Not with "
            "schedules that follow the loss."
        },
    )
    max_metric_drop: float | None = field(
        default=None,
        metadata={
            "help": "Quality floor: how much worse than before the first drop the metric may be on the calibration "
            "set, at least 0. Crossing it restores the last good depth and stops dropping."
        },
    )
    protected_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Layers that are never dropped, by their numbers in the untrimmed model, from 0; an empty list: each may go. "
            "None: with `importance='late_sensitivity'` the first third stays, and with a target below half of it at most five "
            "sixths of the target; else each may go."
        },
    )
    save_depths: list[int] | None = field(
        default=None,
        metadata={"help": "Depths on the way that become checkpoints of their own, in `depth-N` folders."},
    )
    heal_depths: bool = field(
        default=True,
        metadata={
            "help": "Whether each of `save_depths` trains the rest of the run at its depth, behind the run itself, as a run "
            "with that target would have. False keeps the model as it is when the next layers go."
        },
    )
    merge_adapter: bool = field(
        default=True,
        metadata={
            "help": "With a PEFT adapter: whether `save_model` merges it into a standard checkpoint. False saves the "
            "trimmed base model, and the adapter in its folder `adapter`."
        },
    )
    save_dtype: str = field(
        default=AUTO,
        metadata={
            "help": "Precision of the weights that `save_model` and `push_to_hub` write, and in which they are measured: "
            "'float32', 'bfloat16', 'float16', or 'auto', that in which the base model was stored, or in which the model "
            "trains if that is smaller. Checkpoints to resume from stay as they train.",
            "choices": [AUTO, *DTYPES],
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Whether `output_dir` may hold another trimming run, whose checkpoints are then deleted."},
    )

    @property
    def is_trimming(self) -> bool:
        """Whether a target is set."""
        return self.target_layers is not None or self.target_ratio is not None

    def __post_init__(self):
        self._check_trim_fields()
        super().__post_init__()

    def _check_trim_fields(self) -> None:
        if self.target_layers is not None and self.target_ratio is not None:
            raise ValueError(
                f"`target_layers` is {self.target_layers} and `target_ratio` is {self.target_ratio}: set exactly one."
            )
        find_criterion(self.importance)
        rules: list[tuple[str, Any, str]] = [
            ("target_layers", lambda v: v is None or v >= 1, "a depth of at least 1 layer"),
            ("target_ratio", lambda v: v is None or 0 < v < 1, "a share in (0, 1); to drop 40 % write 0.4"),
            ("vocab_size", lambda v: v is None or v >= 1, "at least 1 token, or None for all"),
            ("trim_strategy", STRATEGIES.__contains__, f"one of {', '.join(STRATEGIES)}"),
            ("trim_steps", lambda v: v is None or v > 0, "a positive number of steps, or a share of them below 1"),
            ("trim_delay", lambda v: v >= 0, "at least 0: steps or epochs, below 1 a share of all steps"),
            ("layers_per_trim", lambda v: v is None or v >= 1, "at least 1, or None"),
            ("calibration_size", lambda v: v >= 1, "at least 1 example"),
            ("calibration_metric", (*METRICS, None).__contains__, f"one of {', '.join(METRICS)}, or None"),
            (
                "sparse_update_ratio",
                lambda v: v is None or 0 < v <= 1,
                "a share in (0, 1], or None for all parameters",
            ),
            ("scan_batch_tokens", lambda v: v is None or v >= 1, "at least 1 token, or None"),
            ("racing_confidence", lambda v: v is None or 0.5 < v < 1, "in (0.5, 1), or None for no race"),
            ("compensation_size", lambda v: v is None or v >= 0, "at least 0 examples, or None"),
            ("distill_weight", lambda v: 0 < v <= 1, "a share in (0, 1]"),
            ("distill_temperature", lambda v: v > 0, "above 0"),
            ("save_dtype", (AUTO, *DTYPES).__contains__, f"one of {', '.join((AUTO, *DTYPES))}"),
            ("max_metric_drop", lambda v: v is None or v >= 0, "at least 0; a drop of 2 points of accuracy is 0.02"),
        ]
        for name, is_valid, rule in rules:
            if not is_valid(getattr(self, name)):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, expected {rule}.")
        check_unit(self.trim_unit, self.importance)
        if self.vocab_size is not None and not self.is_trimming:
            raise ValueError(
                f"`vocab_size` is {self.vocab_size}, but neither `target_layers` nor `target_ratio` is set. Set one; to make the "
                "vocabulary alone smaller, use `trim-trainer drop --vocab-size`, and train what it leaves."
            )
        if self.vocab_corpus is not None and self.vocab_size is None:
            raise ValueError(
                f"`vocab_corpus` is {self.vocab_corpus!r}, but `vocab_size` is not set. Set it, or leave it out."
            )
        if self.trim_steps is not None and self.trim_steps > 1 and self.trim_steps != int(self.trim_steps):
            raise ValueError(f"`trim_steps` is {self.trim_steps}, expected whole steps, or a share of them below 1.")
        if self.trim_steps is not None and self.trim_strategy == "epoch":
            raise ValueError(
                f"`trim_steps` is {self.trim_steps}, but `trim_strategy` is 'epoch'. Set `trim_strategy` to 'steps', "
                "or leave `trim_steps` out."
            )
