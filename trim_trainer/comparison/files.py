"""Table, picture and numbers of a comparison, written into its folder."""

import json
from pathlib import Path

from .picture import plot_rows
from .rows import Row
from .table import tabulate

TABLE, PLOT, NUMBERS = "comparison.md", "comparison.png", "comparison.json"


def save_report(rows: list[Row], directory: str | Path) -> None:
    """Write the table, the picture and the numbers of every cell into `directory`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    header, body = tabulate(rows)
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]
    (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    cells = [result.to_plain() for row in rows for result in row.results]
    (folder / NUMBERS).write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    plot_rows(rows, folder / PLOT)
