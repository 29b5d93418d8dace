"""TRL's mixture of data sets, `datasets` in a recipe: its entries read and checked, its rows loaded as `trl sft` does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import get_type_hints

import numpy as np
from datasets import DatasetDict
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from .data.quickstart import resolve_source
from .data.sources import loading_data
from .records.settings import check_keys, check_types

SPLIT_SEED = 0  # as that of all other draws of a recipe


def load_mixture(mixture: DatasetMixtureConfig) -> DatasetDict:
    """Load a mixture: `train`, and with `test_split_size` also `test`.

    TRL draws the test split from numpy's random numbers, which differ from process to process. Here they begin at one
    seed: processes that train together, and those that evaluate later, draw the same rows.
    """
    entries = [replace(entry, path=resolve_source(entry.path)) for entry in mixture.datasets]
    names = ", ".join(str(entry.data_files or entry.path) for entry in entries)
    with _numpy_seed(SPLIT_SEED), loading_data(names):
        return get_dataset(DatasetMixtureConfig(entries, mixture.streaming, mixture.test_split_size))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def read_entries(entries) -> list[DatasetConfig]:
    """Read the entries of a mixture, as a recipe, a script or the command line gives them.

    Raises:
        ValueError: one is not as TRL's mixture has it.
    """
    if not isinstance(entries or [], list):
        entries = entries.path if isinstance(entries, DatasetConfig) else entries  # text, which argparse has read
        raise ValueError(
            f"`datasets` is {entries!r}, expected a list with an entry per data set, such as `- path: org/name`."
        )
    read = [_read_entry(f"Entry {number} of `datasets`", entry) for number, entry in enumerate(entries or [], 1)]
    return [] if [entry.path for entry in read] == ["none"] else read  # as the command line says that there is none


def _read_entry(where: str, entry) -> DatasetConfig:
    if isinstance(entry, dict) and isinstance(entry.get("path"), str):
        check_keys(where, entry, [field.name for field in fields(DatasetConfig)])
        check_types(where, entry, get_type_hints(DatasetConfig))
        entry = DatasetConfig(**entry)
    if not isinstance(entry, DatasetConfig):
        raise ValueError(f"{where} is {entry!r}, expected a mapping with `path`, such as `- path: org/name`.")
    if not isinstance(entry.split, str):
        raise ValueError(f"{where}: `split` is {entry.split!r}, expected the name of one split, such as 'train'.")
    if isinstance(entry.fraction, str) or (entry.fraction or 0) < 0:
        raise ValueError(f"{where}: `fraction` is {entry.fraction!r}, expected a number of at least 0, such as 0.5.")
    return entry


def check_mixture(mixture: DatasetMixtureConfig) -> None:
    """Raise a ValueError for settings of a mixture that cannot go together."""
    fractions = [entry.fraction for entry in mixture.datasets]
    given = [fraction for fraction in fractions if fraction is not None]
    if given and (len(given) < len(fractions) or sum(given) == 0):
        raise ValueError(
            f"`fraction` is {', '.join(map(str, fractions))} in the entries of `datasets`, expected one in each of them and "
            "one above 0, or none at all."
        )
    needs_length = {"fraction": bool(given), "test_split_size": mixture.test_split_size is not None}
    for name, is_set in needs_length.items():
        if mixture.streaming and mixture.datasets and is_set:
            raise ValueError(
                f"`streaming` is true and `{name}` is set, which needs the number of rows. Leave one of them out."
            )
