"""The settings of a run as a recipe: what differs from the defaults, read, written, and without paths of this machine."""

import enum
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

# Settings that say where a run lives, not what it does.
LOCAL_SETTINGS = {
    "output_dir", "logging_dir", "run_name", "hub_token", "resume_from_checkpoint", "overwrite_output_dir", "use_cpu",
    "disable_tqdm", "dataloader_pin_memory",
}  # fmt: skip
# Settings that name a place, on the Hub or on this machine.
PLACES = {"model_name_or_path", "base_model", "dataset_name", "distill_from", "deepspeed", "chat_template_path"}


def changed_settings(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass that are not at their default, as plain values."""
    changed = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        value = value.value if isinstance(value, enum.Enum) else value
        default = entry.default.value if isinstance(entry.default, enum.Enum) else entry.default
        is_plain = value is None or isinstance(value, (int, float, str, bool)) or (isinstance(value, list) and value)
        if default is MISSING and value is None:
            continue
        if entry.init and is_plain and value != default and entry.name not in LOCAL_SETTINGS:
            changed[entry.name] = value
    return changed


def read_settings(path: Path) -> dict[str, Any]:
    """Read a recipe as it is written.

    Raises:
        ValueError: it is not YAML, or no mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{str(path)!r} is not YAML: {error}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{str(path)!r} contains {type(settings).__name__}, expected a mapping of settings.")
    return settings


def without_local_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Name what lies on this machine `./NAME`: where it lies says nothing to others, but much about this machine."""
    return {name: _without_local_path(value) if name in PLACES else value for name, value in settings.items()}


def _without_local_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    return f"./{path.name}" if path.is_absolute() or path.exists() else value
