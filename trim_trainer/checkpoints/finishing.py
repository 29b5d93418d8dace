"""What is done to the files of a checkpoint after they are written, and before they are verified."""

import logging
from itertools import count
from pathlib import Path

from transformers.utils import CONFIG_NAME

from ..hub.layout import INDEX, SINGLE
from ..records.files import ADAPTER_CONFIG, ADAPTER_DIR
from .older_readers import write_older_fields

logger = logging.getLogger(__name__)


def finish_checkpoint(directory: str | Path, is_apart: bool = False) -> None:
    """Write what older readers look for, and set aside what an earlier save left that loaders would take instead.

    Args:
        directory: Where a checkpoint was written just now.
        is_apart: Whether an adapter belongs beside its weights.
    """
    folder = Path(directory)
    if (folder / CONFIG_NAME).is_file():
        for path in _superseded(folder, is_apart):
            aside = _free_name(path)
            logger.warning("%s is of an earlier save and would be loaded in place of this one: it is %s now.", path,
                           aside.name)  # fmt: skip
            path.replace(aside)
    write_older_fields(folder)


def _superseded(folder: Path, is_apart: bool) -> list[Path]:
    single, index = folder / SINGLE, folder / INDEX
    found = []
    if single.is_file() and index.is_file():  # Transformers removes shards that it replaces, and not the other layout
        found.append(min(single, index, key=lambda path: path.stat().st_mtime_ns))
    if single.is_file() or index.is_file():
        names = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")
        found += [folder / name for name in names if (folder / name).is_file()]
        found += [folder / ADAPTER_DIR] if not is_apart and (folder / ADAPTER_DIR / ADAPTER_CONFIG).is_file() else []
    return found


def _free_name(path: Path) -> Path:
    """`NAME.old`, or `NAME.old2` … where that is taken: nothing that was trained is lost."""
    names = (path.with_name(f"{path.name}.old{number if number > 1 else ''}") for number in count(1))
    return next(name for name in names if not name.exists())
