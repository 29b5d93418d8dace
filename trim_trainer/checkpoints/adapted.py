"""A trimmed model under an adapter becomes files that load plainly: merged, or base model and adapter apart."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..records.files import ADAPTER_DIR
from ..surgery.adapters import TRIMMED, untrimmed_name
from ..surgery.cpu_kernels import keep_order
from ..surgery.ties import say_untied
from .finishing import finish_checkpoint
from .plain_copy import plain_copy, without_init
from .precision import cast_tensors, say_dtype
from .verification import verify_checkpoint

CONFIG_NAME = "adapter_config.json"  # of PEFT


def save_adapted(model, directory: str | Path, is_merged: bool, dtype: torch.dtype | None = None) -> None:
    """Save a PEFT model, load it back and compare it with what was trained.

    Merged, `directory` holds a standard checkpoint, dequantized if the base was quantized. Apart, it holds the
    trimmed base model, and its folder `adapter` an adapter whose config names `directory` as its base model.

    Args:
        model: A `PeftModel`, left as it is.
        directory: Where to write.
        is_merged: Merged, or apart.
        dtype: In which weights are stored that are not quantized; None: as they are. Adapters apart stay as they train.

    Raises:
        VerificationError: what can be loaded is not what was trained.
    """
    folder = Path(directory)
    keep_order(model)
    plain = plain_copy(model, is_merged)
    say_untied(plain)
    tensors = plain.state_dict()
    cast = tensors if dtype is None else cast_tensors(plain, tensors, dtype)
    if cast is tensors:
        plain.save_pretrained(folder)
    else:
        plain.save_pretrained(folder, state_dict=cast)
        say_dtype(folder, dtype)
    if not is_merged:
        shutil.rmtree(folder / ADAPTER_DIR, ignore_errors=True)  # of an earlier save, with adapters of other names
        names = dict.fromkeys(model.peft_config, str(folder.resolve()))
        with _described(model, names, _as_saved):
            model.save_pretrained(folder / ADAPTER_DIR)
        _raise_to_top(folder / ADAPTER_DIR, model.active_adapters)
    finish_checkpoint(folder, is_apart=not is_merged)
    verify_checkpoint(folder, model)


@contextmanager
def named_untrimmed(model) -> Iterator[None]:
    """Within, the adapters' configs name the base model that the run began with, as a run that resumes needs it."""
    names = {name: untrimmed_name(config.base_model_name_or_path) for name, config in model.peft_config.items()}
    with _described(model, names, copy.copy):
        yield


def mark_trimmed(folder: Path, depth: int) -> None:
    """Let the adapters of a checkpoint to resume from load nowhere but in a run that resumes, which reads weights alone.

    They are numbered as the layers that are left, and would be put into other layers of the base model that their config
    names. What it says is kept under `adapter`.
    """
    for path in (*folder.glob(CONFIG_NAME), *folder.glob(f"*/{CONFIG_NAME}")):
        config = json.loads(path.read_text(encoding="utf-8"))
        said = {
            "peft_type": f"{config['peft_type']} on a base model that was trimmed to {depth} layers, which is not in this "
            "checkpoint. Resume it with TrimTrainer; what `save_model` and `save_depths` write can be loaded.",
            "base_model_name_or_path": f"{config['base_model_name_or_path'] or ''}{TRIMMED}{depth} layers",
            "adapter": config,
        }
        path.write_text(json.dumps(said, indent=2), encoding="utf-8")


@contextmanager
def _described(model, names: dict[str, str | None], copy_config) -> Iterator[None]:
    """Let the adapters' configs name another base model, in copies of them."""
    before = dict(model.peft_config)
    for adapter, config in before.items():
        model.peft_config[adapter] = described = copy_config(config)
        described.base_model_name_or_path = names[adapter]
    try:
        yield
    finally:
        model.peft_config.update(before)


def _as_saved(config):
    """Beside the base model as it is, in no other revision of it."""
    described = without_init(config)
    described.revision = None
    return described


def _files(folder: Path) -> list[Path]:
    """What PEFT writes of an adapter."""
    return [*folder.glob(CONFIG_NAME), *folder.glob("adapter_model.*")]


def _raise_to_top(folder: Path, active: list[str]) -> None:
    """Loaders look at the top, where PEFT saves an adapter named `default`; the others have folders of their names."""
    if len(active) != 1 or active[0] == "default":
        return
    for path in _files(folder):
        (folder / "default").mkdir(exist_ok=True)
        path.rename(folder / "default" / path.name)
    for path in _files(folder / active[0]):
        shutil.copy2(path, folder)
