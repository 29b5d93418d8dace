"""Rows that are in their file as soon as they are measured."""

import csv
from collections.abc import Iterable
from pathlib import Path


def add_row(row: dict, names: Iterable[str], path: Path | None) -> None:
    """Add a row to a CSV, which begins with its names if it is new; without a path, nowhere."""
    if path is None:
        return
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
