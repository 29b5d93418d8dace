"""What a row holds, whatever holds it: the same content is equal as Python, a tensor, an array or a row of a table."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher

MANY_NUMBERS = 16  # in a list, from which on they are hashed by their bytes
_SCALARS = frozenset((str, int, float, bool, type(None)))
# How arrays, tensors, scalars and columns of NumPy, torch, JAX, Arrow, pandas and TensorFlow become Python, in this order.
_TO_PYTHON = ("tolist", "as_py", "to_pylist", "numpy")


def plain_rows(dataset: Iterable[dict]) -> Iterable[dict]:
    """The rows of a data set as Python objects, whatever format it is set to; what a transform makes of them stays."""
    is_stream = isinstance(dataset, IterableDataset)
    if is_stream or isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        return dataset.with_format(None)
    return map(plain, dataset)


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Names of the columns; those of a stream that does not say are in its first row."""
    return dataset.column_names or list(next(iter(dataset), {}))


def plain(value: Any) -> Any:
    """Arrays, tensors and their scalars, nested or not, as Python; anything else as it is."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return list(value) if _SCALARS.issuperset(map(type, value)) else [plain(each) for each in value]
    if isinstance(value, (bytes, bytearray, memoryview, str)):  # NumPy's texts are texts
        return str(value) if isinstance(value, str) else bytes(value)
    if getattr(getattr(value, "dtype", None), "kind", None) in ("m", "M"):  # in nanoseconds NumPy returns integers
        return plain(value.astype(f"{value.dtype.kind}8[us]").tolist())
    convert = next((getattr(value, name) for name in _TO_PYTHON if hasattr(value, name)), None)
    return value if convert is None else plain(convert())


def digest(content: Any) -> str:
    """A short text that is the same for equal contents, and for them only.

    Fields that are None count as absent, since a table gives every row the fields of all. A list and a tuple are equal,
    NaN is equal to itself, and 1, 1.0, True and "1" are four contents.
    """
    text = json.dumps(_canonical(content), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_same(one: Any, other: Any) -> bool:
    """Whether two contents are equal, as `digest` sees them."""
    return type(one) is type(other) and one == other or _canonical(one) == _canonical(other)


def _canonical(value: Any) -> Any:
    """The same content for JSON: no field that is None, and a name beside what JSON does not know."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {str(name): _canonical(each) for name, each in value.items() if each is not None}
    if isinstance(value, (list, tuple)):
        types = set(map(type, value))
        if types == {int} and len(value) > MANY_NUMBERS:
            return _packed(value)
        return list(value) if types <= _SCALARS else [_canonical(each) for each in value]
    python = plain(value)
    if type(python) in _SCALARS or isinstance(python, (list, dict)):
        return _canonical(python)
    return {f"\0{_kind(python)}": _written_out(python)}


def _packed(numbers: list[int]) -> Any:
    """Token ids, by their bytes: several times as fast as by their digits."""
    try:
        return {"\0int64": hashlib.sha256(array("q", numbers)).hexdigest()}
    except OverflowError:
        return list(numbers)


def _kind(value: Any) -> str:
    """What a value is, by the first of its types that this file knows, so that a subclass is equal to it."""
    known = (bytes, Decimal, datetime, date, time, timedelta)
    return next((each.__name__ for each in known if isinstance(value, each)), type(value).__qualname__)


def _written_out(value: Any) -> Any:
    """All of a value that is no number, text or container."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return str(value.normalize())
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return [value.days, value.seconds, value.microseconds]
    if hasattr(value, "tobytes") and hasattr(value, "getpalette"):  # an image: its pixels, not how a file packs them
        return [value.mode, list(value.size), value.getpalette(), hashlib.sha256(value.tobytes()).hexdigest()]
    return Hasher.hash(value)
