"""A trimmed model under an adapter becomes files that load plainly: merged, or base model and adapter apart."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..records.files import ADAPTER_DIR
from ..surgery.cpu_kernels import keep_order
from ..surgery.ties import say_untied
from .finishing import finish_checkpoint
from .plain_copy import plain_copy, without_init
from .verification import verify_checkpoint

_ADAPTER_FILES = "adapter_*"  # of PEFT: config and weights


def save_adapted(model, directory: str | Path, is_merged: bool) -> None:
    """Save a PEFT model, load it back and compare it with what was trained.

    Merged, `directory` holds a standard checkpoint, in full precision if the base was quantized. Apart, it holds the
    trimmed base model, and its folder `adapter` an adapter whose config names `directory` as its base model.

    Args:
        model: A `PeftModel`, left as it is.
        directory: Where to write.
        is_merged: Merged, or apart.

    Raises:
        VerificationError: what can be loaded is not what was trained.
    """
    folder = Path(directory)
    keep_order(model)
    plain = plain_copy(model, is_merged)
    say_untied(plain)
    plain.save_pretrained(folder)
    if not is_merged:
        shutil.rmtree(folder / ADAPTER_DIR, ignore_errors=True)  # of an earlier save, with adapters of other names
        with _described(model, str(folder.resolve())):
            model.save_pretrained(folder / ADAPTER_DIR)
        _raise_to_top(folder / ADAPTER_DIR, model.active_adapters)
    finish_checkpoint(folder, is_apart=not is_merged)
    verify_checkpoint(folder, model)


@contextmanager
def _described(model, name: str) -> Iterator[None]:
    """Let the adapters' configs name the trimmed base model as it is saved, not the one that training began with."""
    before = dict(model.peft_config)
    for adapter, config in before.items():
        model.peft_config[adapter] = described = without_init(config)
        described.base_model_name_or_path, described.revision = name, None
    try:
        yield
    finally:
        model.peft_config.update(before)


def _raise_to_top(folder: Path, active: list[str]) -> None:
    """Loaders look at the top, where PEFT saves an adapter named `default`; the others have folders of their names."""
    if len(active) != 1 or active[0] == "default":
        return
    for path in list(folder.glob(_ADAPTER_FILES)):
        (folder / "default").mkdir(exist_ok=True)
        path.rename(folder / "default" / path.name)
    for path in (folder / active[0]).glob(_ADAPTER_FILES):
        shutil.copy2(path, folder)
