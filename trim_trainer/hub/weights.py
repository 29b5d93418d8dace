"""The weights of a folder that may hold two layouts of them: which one the history speaks of, and which loaders take."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..records.files import ADAPTER_DIR
from ..records.json_files import damaged, read_json
from .layout import INDEX, SINGLE

CHUNK_BYTES = 1 << 22
_NUMBERED = re.compile(r"(.*?)\.(\d+)\.")


@dataclass(frozen=True)
class Layout:
    """One file of weights, or an index and its shards; `main` is the file by which loaders begin."""

    main: str
    shards: tuple[str, ...]

    @property
    def files(self) -> set[str]:
        """All its names."""
        return {self.main, *self.shards}


def find_layouts(folder: Path) -> list[Layout]:
    """The layouts in a folder, whole or not, in the order in which loaders look for them."""
    found = []
    if (folder / SINGLE).is_file():
        found.append(Layout(SINGLE, (SINGLE,)))
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise damaged(folder / INDEX, "its `weight_map` does not name the files of the tensors")
        found.append(Layout(INDEX, tuple(sorted(set(named.values())))))
    return found


def damage(folder: Path, layout: Layout) -> str | None:
    """Say what is wrong with a layout; None: all its files are there and open."""
    missing = [name for name in layout.shards if not (folder / name).is_file()]
    if missing:
        return f"{str(folder)!r} lacks weights: {', '.join(missing)}"
    for name in layout.shards:
        try:
            with safe_open(folder / name, framework="np") as tensors:
                tensors.keys()
        except SafetensorError as error:
            return f"{str(folder / name)!r} is cut short or damaged: {error}"
    return None


def depths(folder: Path, layout: Layout) -> set[int]:
    """How many layers the tensors' names count, in each stack: of a text decoder, and of what may stand beside it."""
    counted: dict[str, int] = {}
    for name in layout.shards:
        with safe_open(folder / name, framework="np") as tensors:
            for found in filter(None, map(_NUMBERED.match, tensors.keys())):
                counted[found[1]] = max(counted.get(found[1], 0), int(found[2]) + 1)
    return set(counted.values())


def weights_digest(folder: Path) -> str | None:
    """A digest of the tensors that loaders take from a folder, those of adapters beside the weights too; None: there are none.

    It is the same however tensors lie in files.
    """
    found = find_layouts(folder)
    return digest(folder, (*found[0].shards, *_adapter_files(folder))) if found else None


def has_digest(folder: Path, layout: Layout, wanted: str) -> bool:
    """Whether the tensors of a layout, and of adapters beside it, are those of `weights_digest`; once it left adapters out."""
    adapters = _adapter_files(folder)
    if digest(folder, (*layout.shards, *adapters)) == wanted:
        return True
    return bool(adapters) and digest(folder, layout.shards) == wanted


def _adapter_files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in (folder / ADAPTER_DIR).rglob("*.safetensors")))


def digest(folder: Path, names: Iterable[str]) -> str:
    """A digest of the names, types, shapes and values of the tensors in these files."""
    rows = sorted(
        (
            tensor,
            entry["dtype"],
            entry["shape"],
            path,
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for path in (folder / name for name in names)
        for start, tensor, entry in _entries(path)
    )
    whole = hashlib.sha256()
    for tensor, dtype, shape, path, begin, end in rows:
        whole.update(f"{tensor} {dtype} {shape}\n".encode())
        with path.open("rb") as file:
            file.seek(begin)
            while begin < end:
                chunk = file.read(min(CHUNK_BYTES, end - begin))
                begin += len(chunk)
                whole.update(chunk)
    return whole.hexdigest()


def _entries(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Where the values begin, and each tensor's name and row in the header of a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield 8 + length, name, entry
