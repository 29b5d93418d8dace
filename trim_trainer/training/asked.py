"""What a run is asked for, as it is recorded beside its checkpoints, or known of older ones."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import ADAPTER_CONFIG_NAME

from ..records.history import TrimHistory
from ..records.json_files import read_json
from ..records.run_record import RunRecord
from ..scoring.processes import from_main
from . import fingerprints

# Settings by which the drops that are left are planned: where one of them is another, they are planned anew.
PLANNED = (
    "target_layers",
    "trim_strategy",
    "trim_steps",
    "trim_delay",
    "layers_per_trim",
    "save_depths",
    "heal_depths",
)
# Settings without which dropping may not have stopped.
STOPPING = ("max_metric_drop", "protected_layers")
# What a teacher has said holds for these only.
TEACHING = ("distill_from", "distill_temperature")
# Settings that a run keeps from its first step to its last, and why.
KEPT = {
    "trim_unit": "scores of layers and of seams are compared with each other",
    "importance": "the layers of one run are chosen by one criterion",
    "calibration_metric": "all scores of one run, and its quality floor, are in one metric",
    "calibration_size": "a set that is held out anew would have examples that the model has trained on",
    "compensation_size": "the drops of one run are made good in one way",
    "sparse_update_ratio": "the state of the optimizer is that of the parameters that trained",
}
EXPLAINING = ("seed",)  # why a calibration set may be another one


def record_of(trainer) -> RunRecord:
    """What a `TrimTrainer` is asked for, to be written beside a checkpoint of it."""
    return RunRecord(
        settings=asked_of(trainer),
        num_steps=trainer.state.max_steps,
        start=asdict(trainer.start),
        is_over=trainer.trimming.is_over,
        calibration=fingerprints.of_examples(trainer.trimming.examples),
        evaluation=fingerprints.of_examples(trainer.evaluation_examples),
        model=fingerprints.plain_config(trainer.untrimmed_config),
        adapter=adapter_of(trainer.model),
        base_weights=trainer.base_weights,
    )


def asked_of(trainer) -> dict[str, Any]:
    """The settings that a `TrimTrainer` has, as its history takes them."""
    args, history, settings = trainer.args, trainer.history, trainer.trimming.settings
    resolved = {
        "target_layers": history.target_layers,
        "importance": history.importance,
        "calibration_metric": history.calibration_metric,
        "calibration_size": len(trainer.trimming.examples),
        "compensation_size": history.compensation_size,
        "layers_per_trim": settings.layers_per_trim,
        "sparse_update_ratio": settings.sparse_update_ratio,
        "protected_layers": sorted(settings.protected_layers),
        "save_depths": sorted(args.save_depths or ()),
    }
    names = [*PLANNED, *STOPPING, *TEACHING, *KEPT, *EXPLAINING]
    return {name: resolved.get(name, getattr(args, name)) for name in names}


def known_of(history: TrimHistory, checkpoint: str, asked: dict[str, Any]) -> RunRecord:
    """What a checkpoint without a record says of its run, in the words of what is asked now."""
    state = read_json(Path(checkpoint) / TRAINER_STATE_NAME)
    names = ("target_layers", "importance", "calibration_metric", "calibration_size", "compensation_size")
    settings = {name: getattr(history, name) for name in names}
    if history.rounds:
        trained = history.trained_layers
        ratio = asked["sparse_update_ratio"]  # the one that was asked for is not known, but whether there was one
        likely = ratio if ratio is not None else round(len(trained or ()) / history.num_layers, 2)
        settings["sparse_update_ratio"] = None if trained is None else likely
    path = Path(checkpoint) / ADAPTER_CONFIG_NAME
    adapter = read_json(path)["peft_type"] if path.is_file() else "none"
    return RunRecord(settings, num_steps=state.get("max_steps"), adapter=adapter)


def different_settings(record: RunRecord, asked: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Which of these settings were others; what is not known was not."""
    return [name for name in names if record.settings.get(name, asked[name]) != asked[name]]


def adapter_of(model) -> str:
    """Kind of PEFT adapter that a model has, such as LORA; "none": it has none."""
    return model.peft_config[model.active_adapter].peft_type.value if is_peft_model(model) else "none"


def base_weights_of(trainer) -> str | None:
    """Fingerprint of the untrimmed layers of a `TrimTrainer`, of which its checkpoints hold an adapter only."""
    return from_main(fingerprints.of_layers(trainer.causal_lm) if is_peft_model(trainer.model) else None)
