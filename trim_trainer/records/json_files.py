"""JSON objects in files, as a checkpoint has them: one that is cut short, empty or something else is named."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OBJECT = "an object, `{…}`, was expected"


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        OSError: it cannot be read.
        ValueError: it is cut short, damaged, or holds something else.
    """
    return parse_json(Path(path).read_bytes(), path)


def parse_json(content: str | bytes, source: str | Path) -> dict[str, Any]:
    """Read one JSON object; `source` is the file that it comes from. Raises a ValueError as `read_json` does."""
    try:
        data = json.loads(content)
    except ValueError as error:  # of bytes that are no text, too
        raise damaged(source, error) from None
    if not isinstance(data, dict):
        raise damaged(source, OBJECT)
    return data


def damaged(source: str | Path, what: object) -> ValueError:
    """The error of a file that does not hold what was written there; `what` is a sentence, or the error of reading it."""
    what = f"{what} is missing" if isinstance(what, KeyError) else what
    return ValueError(
        f"{str(source)!r} is cut short or damaged: {what}. Copy it again from where it came, or save it again."
    )


def check_json(folder: str | Path, names: Iterable[str]) -> None:
    """Raise a ValueError for the first `.json` of the named files in a folder that is there and holds no JSON object."""
    for path in (Path(folder) / name for name in names if name.endswith(".json")):
        if path.is_file():
            read_json(path)
