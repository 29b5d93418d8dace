"""The measured rows that the tables of the pages are made from."""

import csv
from functools import cache
from pathlib import Path


@cache
def read(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a CSV of this folder; none where it is not there yet."""
    path = Path(__file__).with_name(name)
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))
