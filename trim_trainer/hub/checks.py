"""What a folder has to be, and what may not leave the machine: the checks before anything is sent."""

import re
from pathlib import Path
from typing import Any

from ..architectures.rewriting import depth_in
from ..records.files import ADAPTER_CONFIG, HISTORY_NAME
from ..records.history import TrimHistory
from ..records.json_files import read_json
from .layout import CONFIG, INDEX, SINGLE
from .weights import Layout, damage, depths, digest, find_layouts, has_digest

_ABSOLUTE = re.compile(r"""(?<![\w./:~-])(?:/(?:[\w.@+-]+/)+[\w.@+-]+|[A-Za-z]:\\{1,2}[\w.@+-]+)""")
_SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\b(?:sk|ghp|wandb)[-_][A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}")


class StagingError(ValueError):
    """The folder cannot be published as it is; the message says which file and why. Nothing was sent."""


def way_out(folder: Path, names: dict[str, Path]) -> str:
    """What a folder is that cannot be published, and what to do."""
    if not folder.is_dir():
        return "there is no such folder."
    if ADAPTER_CONFIG in names and CONFIG not in names:
        return (
            "it is an adapter alone, such as a checkpoint to resume from. Resume the run from it and call `save_model`, "
            "which merges the adapter or writes its base model beside it; publish that folder."
        )
    if any(name.endswith(".safetensors") for name in names):
        return (
            "nothing says which layers it lost. `save_model` of a trimming run and `trim-trainer drop MODEL --layers 3,17 "
            "--output DIR` write that down; layers that `drop_layers` took from a model in memory are dropped again by "
            "that command. What was not trimmed is uploaded by `hf upload`."
        )
    found = sorted(path.name for path in folder.glob("checkpoint-*"))
    if found:
        return (
            f"it holds checkpoints ({', '.join(found[:3])}) of a run that did not end. Resume it "
            "(`resume_from_checkpoint`) and call `save_model`, or publish one of them."
        )
    return (
        "it is no checkpoint. Publish the `output_dir` of a run that called `save_model`, or what `trim-trainer drop` "
        "wrote; `trim-trainer compare` leaves numbers and no model."
    )


def own_code(folder: Path, names: dict[str, Path]) -> dict[str, Path]:
    """The modules without which a model with code of its own does not load; code on the Hub already is named there."""
    maps = [read_json(path).get("auto_map") for path in _configs(names)]
    named = [entry for each in maps for value in (each or {}).values() for entry in _listed(value)]
    wanted = {f"{entry.split('.')[0]}.py" for entry in named if entry and "--" not in entry}
    if missing := sorted(wanted - names.keys()):
        raise StagingError(
            f"{str(folder)!r} lacks {', '.join(missing)}, which `auto_map` names: copy the code beside it."
        )
    code = {name: path for name, path in names.items() if wanted and name.endswith(".py") and "/" not in name}
    for name, path in code.items():
        check_text(str(folder / name), path.read_text(encoding="utf-8"), is_code=True)
    return code


def check_config(path: Path, depth: int) -> None:
    """Raise a StagingError if a `config.json` does not say which model it is, or names another depth."""
    config = read_json(path)
    if not config.get("model_type"):
        raise StagingError(f"{str(path)!r} has no `model_type`, so nothing says which model this is. Save it again.")
    named = depth_in(config)
    if named not in (None, depth):
        raise StagingError(
            f"{str(path)!r} is of {named} layers, and {HISTORY_NAME} beside it speaks of {depth}: they are of two models. "
            "Save the model again."
        )


def _configs(names: dict[str, Path]) -> list[Path]:
    return [
        path
        for name, path in names.items()
        if name == CONFIG or name.endswith(("tokenizer_config.json", "processor_config.json"))
    ]


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def choose_weights(folder: Path, history: TrimHistory) -> Layout:
    """The layout of weights that the history speaks of: whole, of its depth, and where two are, its tensors.

    Raises:
        StagingError: there is none, or it cannot be told which.
    """
    found = find_layouts(folder)
    whole = [layout for layout in found if damage(folder, layout) is None]
    if not whole:
        what = damage(folder, found[0]) if found else f"{str(folder)!r} lacks weights: *.safetensors"
        raise StagingError(f"{what}. Save it again.")
    fitting = [layout for layout in whole if history.depth in depths(folder, layout)]
    if not fitting:
        raise StagingError(
            f"{str(folder / whole[0].main)!r} holds no weights of {history.depth} layers, of which {HISTORY_NAME} speaks: "
            "they are another model's. Save the model again."
        )
    wanted = history.card and history.card.weights
    digests = {digest(folder, layout.shards) for layout in fitting} if len(fitting) > 1 else ()
    if len(digests) > 1:
        fitting = [layout for layout in fitting if wanted is not None and has_digest(folder, layout, wanted)]
    if not fitting:
        raise StagingError(
            f"{str(folder)!r} holds two models of {history.depth} layers, {SINGLE!r} and the shards of {INDEX!r}, and "
            "nothing says which is the trained one. Move the older one away, then publish again."
        )
    if len(digests) < 2 and wanted is not None and not has_digest(folder, fitting[0], wanted):
        raise StagingError(
            f"{str(folder / fitting[0].main)!r} or an adapter beside it holds other weights than those that {HISTORY_NAME} speaks "
            "of: they changed after they were saved, and what was measured is not of them. Train further with `TrimTrainer`, or "
            "save into another folder and upload that with `hf upload`."
        )
    return fitting[0]


def check_text(name: str, text: str, is_code: bool = False) -> None:
    """Raise a StagingError if a text that would be published holds a secret or, unless code, a path of this machine."""
    for pattern, what in ((_SECRETS, "a secret"), (_ABSOLUTE, "a path of this machine")):
        found = None if is_code and pattern is _ABSOLUTE else pattern.search(text)
        if found:
            shown = found.group() if pattern is _ABSOLUTE else found.group()[:6] + "…"
            raise StagingError(
                f"{name!r} holds {what}, {shown!r}. Edit the file, then publish again. Nothing was sent."
            )
