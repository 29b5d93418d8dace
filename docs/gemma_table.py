"""The second model: Gemma 3 270M by the default, next to full depth and controls, from docs/gemma.csv."""

from csv_rows import read

from trim_trainer.comparison.methods import METHODS
from trim_trainer.records.statistics import wilson_interval

TASKS = {"fpb": "news", "medmcqa_subject": "medicine", "cuad_yesno": "law"}
TITLES = {name: method.title for name, method in METHODS.items()} | {"progressive": "**the default**"}


def lines() -> list[list[str]]:
    """A line for each run."""
    found = [["", "layers", "accuracy", "loss", "points over full depth", "bytes", "layers that went"]]
    rows = sorted(
        read("gemma.csv"),
        key=lambda row: (
            list(TASKS).index(row["dataset_name"]),
            list(TITLES).index(row["method"]),
            row.get("vocab_size") or "",
        ),
    )
    for row in rows:
        whole = [each for each in rows if each["dataset_name"] == row["dataset_name"] and each["method"] == "full"]
        middle = float(row["accuracy"])
        low, high = wilson_interval(middle, int(row["num_examples"]))
        ahead = f"{100 * (middle - float(whole[0]['accuracy'])):+.1f}" if whole and row is not whole[0] else ""
        fewer = f", {int(row['vocab_size']):,} tokens" if row.get("vocab_size") else ""
        found.append(
            [
                f"{TASKS[row['dataset_name']]}, {TITLES[row['method']]}{fewer}", row["depth"], f"{middle:.3f} ({low:.3f}–{high:.3f})",
                f"{float(row['loss']):.3f}", ahead, f"{int(row['num_bytes']) / 1e6:,.0f} MB", row["dropped"],
            ]
        )  # fmt: skip
    return found
