"""Rows of a comparison as one table."""

from .methods import METHODS, RECIPE
from .rows import Row


def tabulate(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of the table; columns that nobody measured are left out."""
    tasks = list(dict.fromkeys(task for row in rows for result in row.results for task in result.measured.quality))
    columns = {
        "layers": _mean("depth", "{:.0f}"),
        "method": lambda row: row.title,
        "seeds": lambda row: str(len(row.results)),
        "lr": lambda row: f"{row.results[0].cell.learning_rate:g}",
        "steps": _mean("num_steps", "{:.0f}"),
    }
    for task in tasks:
        for name, title, form in (("accuracy", "accuracy", ".3f"), ("macro_f1", "macro-F1", ".3f")):
            columns[title if task == RECIPE else f"{task} {title}"] = _quality(task, name, form)
        if all(row.quality(task, "accuracy") is None for row in rows):
            columns[f"{task} perplexity"] = _quality(task, "perplexity", ".1f")
    columns |= {f"points over {METHODS[name].title}": _difference(rows, name) for name in ("full", "progressive")}
    columns |= {
        "training": _mean("train_seconds", "{:.0f} s"),
        "of it calibration": _mean("calibration_seconds", "{:.0f} s"),
        "tokens": _mean("num_train_tokens", "{:,.0f}"),
        "decode": _mean("decode_tokens_per_second", "{:.1f}/s"),
        "prefill": _mean("prefill_tokens_per_second", "{:.0f}/s"),
        "weights": _mean("num_bytes", "{:.0f} MB", 1e6),
        "peak": _mean("train_peak_bytes", "{:.1f} GiB", 2**30),
    }
    lines = [[cell(row) for cell in columns.values()] for row in rows]
    used = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    return [list(columns)[i] for i in used], [[line[i] for i in used] for line in lines]


def _mean(name: str, form: str, unit: float = 1):
    """Of a field of the results, in a unit; empty where it was not measured, as the bytes of quantized weights."""

    def cell(row: Row) -> str:
        mean = row.mean(name)
        return "" if mean is None else form.format(mean / unit)

    return cell


def _quality(task: str, name: str, form: str):
    def cell(row: Row) -> str:
        return _with_interval(row.quality(task, name), form, "–")

    return cell


def _difference(rows: list[Row], reference: str):
    """Accuracy above full depth, or above another method at the same depth, paired by seed, in points."""

    def cell(row: Row) -> str:
        is_deep = METHODS[reference].drops == "never"
        same = (row.depth, row.is_equal_seconds)
        others = [
            each
            for each in rows
            if each.method == reference and (is_deep or (each.depth, each.is_equal_seconds) == same)
        ]
        if not others or row.method == reference:
            return ""
        found = row.difference(others[0], RECIPE, "accuracy")
        return _with_interval(found and tuple(100 * value for value in found), "+.1f", " to ")

    return cell


def _with_interval(found: tuple[float, float, float] | None, form: str, between: str) -> str:
    """Mean and interval as text; an interval of no width is left out, and what was not measured is empty."""
    if found is None:
        return ""
    mean, low, high = (format(value, form) for value in found)
    return mean if low == high else f"{mean} ({low}{between}{high})"
