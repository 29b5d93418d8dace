"""What the commands print: one line per drop, and tables."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..comparison.methods import METHODS, RECIPE
from ..records.history import name_dropped
from ..records.measurement import EVALUATION


def describe_drop(history, state) -> str:
    """One line about the last drop."""
    last = history.rounds[-1]
    layers = ", ".join(f"{name_dropped([layer])} (score {last.score_of(layer):+.4f})" for layer in last.dropped)
    speed = "" if last.decode_tokens_per_second is None else f"{last.decode_tokens_per_second:.1f} tokens/s; "
    return (
        f"step {last.step}/{state.max_steps}: dropped layer {layers}; {history.calibration_metric} {last.metric:.3f} "
        f"→ {last.metric_after:.3f}; {last.depth_after} layers left; {speed}"
        f"{last.seconds:.0f} s"
    )


def print_summary(trainer) -> None:
    """Print the closing table: before, after, and where the result is."""
    history = trainer.history
    before, after = history.untrimmed, history.trimmed
    table = Table("", "before training", "after", title=f"{history.num_layers} → {history.depth} layers")
    rows = [
        ("layers", [before, after], "depth", "{:d}"),
        ("parameters", [before, after], "num_parameters", "{:,}"),
    ]
    for title, quality in after.quality.items():
        qualities, where = [before.quality.get(title), quality], "" if title == EVALUATION else f"{title}: "
        rows += [
            (f"{where}accuracy (n = {quality.num_examples})", qualities, "accuracy", "{:.3f}"),
            (f"{where}accuracy of the most frequent answer", qualities, "majority_accuracy", "{:.3f}"),
            (f"{where}loss (nats per scored token)", qualities, "loss", "{:.4f}"),
        ]
    ratio = after.decode_ratio
    if ratio is None or ratio.is_telling:
        rows.append(("tokens/s, greedy, batch of one", [before, after], "decode_tokens_per_second", "{:.1f}"))
    for label, measured, name, form in rows:
        values = [getattr(each, name, None) for each in measured]
        if None not in values:
            table.add_row(label, *(form.format(value) for value in values))
    Console().print(table)
    if ratio is not None:
        print(f"Tokens/s of this model to those of the untrimmed one: {ratio}.")
    scans = history.calibration_seconds
    print(f"Dropped, in order: {name_dropped(history.dropped)}. Calibration took {scans:.0f} s.")
    if history.stopped is not None:
        print(f"Dropping stopped early: {history.stopped}.")
    print(f"Saved, reloaded and compared: {Path(trainer.args.output_dir).resolve()}")


def print_layers(report) -> None:
    """Print the layers, the least important first."""
    title = f"{report.criterion} by {report.metric}, {report.num_examples} examples"
    table = Table("rank", "layer", "score", "examples", "activation norm", "", title=title)
    for rank, layer in enumerate(report.order(), start=1):
        is_seam = isinstance(layer, tuple)
        norm = "" if report.activation_norms is None or is_seam else f"{report.activation_norms[layer]:.1f}"
        note = "" if report.can_go(layer) else "has to stay"
        score, number = f"{report.score_of(layer):+.4f}", report.num_scored_of(layer)
        row = (rank, name_dropped([layer]), score, number, norm, note)
        table.add_row(*map(str, row))
    Console().print(table)
    print(f"{report.metric} of the whole model {report.value:.4f}; {report.seconds:.1f} s.")


def print_checkpoints(reports, sequence_length: int, memory: int) -> None:
    """Print checkpoints side by side, one column each; the KV cache is that of a sequence, the memory in GB."""
    tasks = list(dict.fromkeys(task for report in reports for task in report.measured.quality))
    table = Table("", *(report.model for report in reports))
    rows = [
        ("layers", lambda report: f"{report.measured.depth}"),
        ("parameters", lambda report: f"{report.measured.num_parameters:,}"),
        ("weights in memory", lambda report: _megabytes(report.measured.num_bytes)),
        (f"KV cache of {sequence_length:,} tokens", lambda report: _cache(report.measured.cache, sequence_length)),
        (
            f"such sequences in {memory} GB",
            lambda report: _number(report.measured.num_sequences(sequence_length, memory * 10**9)),
        ),
        ("peak memory", lambda report: f"{report.measured.peak_memory_bytes / 1e6:,.0f} MB"),
        ("seconds to load", lambda report: f"{report.measured.load_seconds:.2f}"),
        ("decoding, tokens/s", lambda report: f"{report.measured.decode_tokens_per_second:.1f}"),
        ("prefill, tokens/s", lambda report: f"{report.measured.prefill_tokens_per_second:.0f}"),
    ]
    for task in tasks:
        found = [report.measured.quality[task] for report in reports]
        n = found[0].num_examples
        # Where the tokens are others, what is said per token compares nothing.
        is_same = len({quality.num_tokens for quality in found}) == 1
        for name, form in (
            ("accuracy", ".3f"),
            ("majority_accuracy", ".3f"),
            ("macro_f1", ".3f"),
            ("perplexity", ".3f") if is_same else ("loss_per_character", ".4f"),
        ):
            title = f"{task}: {name.replace('_', ' ').replace('f1', 'F1')} (n = {n})"
            rows.append(
                (title, lambda report, task=task, name=name, form=form: _of(report.measured.quality[task], name, form))
            )
        rows.append((f"{task}: accuracy by lm_eval", lambda report, task=task: _lm_eval(report, task)))
    print_rows(table, ((title, *(cell(report) for report in reports)) for title, cell in rows))
    print(f"{reports[0].measured.device}, {', '.join(dict.fromkeys(report.measured.dtype for report in reports))}.")


def print_vocabulary(record) -> None:
    """Print how many tokens stayed, and how texts fare."""
    print(f"{record.num_before:,} → {record.num_tokens:,} tokens.")
    for each in record.texts:
        print(
            f"  {each.name}: {100 * each.kept_ratio:.1f} % of the tokens stayed, "
            f"{each.num_before / each.num_texts:.1f} → {each.num_after / each.num_texts:.1f} tokens per text."
        )


def _cache(cache, num_tokens: int) -> str:
    return "" if cache is None else f"{cache.num_bytes(num_tokens) / 1e6:,.1f} MB"


def _megabytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:,.0f} MB"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _lm_eval(report, task: str) -> str:
    return f"{report.lm_eval_accuracy[task]:.3f}" if task in report.lm_eval_accuracy else ""


def _of(quality, name: str, form: str) -> str:
    value = getattr(quality, name)
    return "" if value is None else format(value, form)


def print_rows(table: Table, rows: Iterable[tuple[str, ...]]) -> None:
    """Print the rows that say something."""
    for row in rows:
        if any(row[1:]):
            table.add_row(*row)
    Console().print(table)


def print_comparison(rows) -> None:
    """Print a comparison, one line per method and depth."""
    from ..comparison.table import tabulate

    header, body = tabulate(rows)
    table = Table(*header)
    for line in body:
        table.add_row(*line)
    Console(width=max(Console().width, 200)).print(table)


def describe_cell(result) -> str:
    """One line about a run of a comparison."""
    cell, quality = result.cell, result.measured.quality[RECIPE]
    good = f"accuracy {quality.accuracy:.3f}" if quality.accuracy is not None else f"loss {quality.loss:.4f}"
    steps = f"{cell.num_steps} steps, " if cell.is_equal_seconds else ""
    return (
        f"{METHODS[cell.method].title}, {result.measured.depth} layers, seed {cell.seed}, lr {cell.learning_rate:g}: {good}, "
        f"{steps}{result.train_seconds:.0f} s"
    )
