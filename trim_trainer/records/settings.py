"""The settings of a run as a recipe: what differs from the defaults, read, checked, and without paths of this machine."""

import difflib
import enum
import types
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

# Settings that say where a run lives, not what it does; also inside a setting that is a mapping.
LOCAL_SETTINGS = {
    "output_dir", "logging_dir", "run_name", "hub_token", "resume_from_checkpoint", "overwrite_output_dir", "use_cpu",
    "disable_tqdm", "dataloader_pin_memory", "token", "cache_dir",
}  # fmt: skip
# Settings that name a place, on the Hub or on this machine.
PLACES = {"model_name_or_path", "base_model", "dataset_name", "distill_from", "deepspeed", "chat_template_path"}
# Keys of an entry of `datasets` that do.
PLACES_OF_AN_ENTRY = {"path", "data_dir", "data_files"}
# Settings of which an empty list says something else than none.
EMPTY_SAYS = {"protected_layers"}
# Type of a field -> how a recipe's author calls it.
KINDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a mapping"}


def changed_settings(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass that are not at their default, as plain values."""
    changed = {}
    for entry in fields(config):
        value = _as_plain(getattr(config, entry.name))
        default = entry.default.value if isinstance(entry.default, enum.Enum) else entry.default
        if (value in ([], {}) and entry.name not in EMPTY_SAYS) or (default is MISSING and value is None):
            continue
        if entry.init and value != default and entry.name not in LOCAL_SETTINGS and _is_plain(value):
            changed[entry.name] = value
    return changed


def _as_plain(value: Any) -> Any:
    """A value as YAML knows it, an entry of a mixture as what is set in it; what YAML does not know stays as it is."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list):
        return [changed_settings(each) if is_dataclass(each) else _as_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _as_plain(each) for name, each in value.items() if name not in LOCAL_SETTINGS}
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (int, float, str, bool))


def says_none(value: Any) -> bool:
    """Whether a value is text that stands for no value, as TRL's parser reads it of optional numbers."""
    return isinstance(value, str) and value.lower() in ("none", "null")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a recipe as it is written.

    Raises:
        ValueError: it is not YAML, or no mapping.
        OSError: there is no such file, or it cannot be read.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        found = "nothing" if settings is None else type(settings).__name__
        raise ValueError(f"{str(path)!r} contains {found}, expected a mapping of settings.")
    return settings


def split_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Take `--config FILE` or `--config=FILE` out of a command line.

    Raises:
        ValueError: it is there twice, or names no file.
    """
    words, found = list(arguments), []
    for position in reversed(range(len(words))):
        name, equals, value = words[position].partition("=")
        if name == "--config":
            following = words[position + 1 : position + 2]
            found.append(value if equals else "".join(following))
            del words[position : position + (1 if equals else 2)]
    if not found:
        return None, words
    if len(found) > 1:
        raise ValueError(f"`--config` is there {len(found)} times, expected one recipe: {', '.join(reversed(found))}.")
    if not found[0] or found[0].startswith("--"):
        raise ValueError("`--config` names no file, expected `--config recipe.yaml`.")
    return Path(found[0]), words


def check_keys(where: str, keys: Iterable, known: Iterable[str]) -> None:
    """Raise a ValueError that lists every unknown key, each with the nearest known one; `where` begins the sentence."""
    known = sorted(known)
    unknown = [str(key) for key in keys if key not in known]
    if unknown:
        hints = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
        listed = [f"`{key}`" + (f" (did you mean `{near[0]}`?)" if near else "") for key, near in hints.items()]
        raise ValueError(f"{where} has {len(unknown)} unknown key(s): {', '.join(listed)}.")


def check_types(where: str, settings: dict[str, Any], hints: dict[str, Any]) -> None:
    """Raise a ValueError for a value that cannot be that of its field. Text is read as on the command line, later.

    Args:
        where: Begins the sentence.
        settings: As YAML has read them.
        hints: Name of a field -> its type.
    """
    for name, value in settings.items():
        if name not in hints or _fits(value, hints[name]):
            continue
        wanted = " or ".join(dict.fromkeys(KINDS.get(kind, "text") for kind in _kinds(hints[name])))
        why = " YAML reads no, off, yes and on as false and true: put text in quotes." if type(value) is bool else ""
        raise ValueError(f"{where}: `{name}` is {value!r}, expected {wanted}.{why}")


def _kinds(hint: Any) -> list[Any]:
    """The types of a hint without None: `list[int] | None` -> [list]."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [get_origin(member) or member for member in members if member is not type(None)]


def _fits(value: Any, hint: Any) -> bool:
    kinds = _kinds(hint)
    if value is None or isinstance(value, str) or Any in kinds:
        return True
    if type(value) is float and not value.is_integer():
        return float in kinds
    if type(value) in (int, float):
        return int in kinds or float in kinds
    return type(value) in kinds


def without_local_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Name what lies on this machine `./NAME`: where it lies says nothing to others, but much about this machine."""
    shared = _shared(settings, PLACES)
    if isinstance(entries := settings.get("datasets"), list):
        shared["datasets"] = [
            _shared(each, PLACES_OF_AN_ENTRY) if isinstance(each, dict) else each for each in entries
        ]
    return shared


def _shared(settings: dict[str, Any], places: set[str]) -> dict[str, Any]:
    return {name: without_local_path(value) if name in places else value for name, value in settings.items()}


def without_local_path(value: Any) -> Any:
    """A place, or places, by the last part of the name where they lie on this machine."""
    if isinstance(value, list):
        return [without_local_path(each) for each in value]
    if isinstance(value, dict):
        return {name: without_local_path(each) for name, each in value.items()}
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    return f"./{path.name}" if path.is_absolute() or path.exists() else value
