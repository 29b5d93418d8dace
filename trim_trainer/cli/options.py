"""Options as people write them: both spellings, `--learning-rate` and `--learning_rate`, and a hint at the nearest one."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes both spellings of its options, whichever it was told."""

    def __init__(self, *args, **kwargs):
        self._spellings: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def add_argument(self, *names, **kwargs) -> argparse.Action:
        """Add an argument, see `argparse`."""
        action = super().add_argument(*names, **kwargs)
        self._spellings |= {_dashed(name): name for name in action.option_strings if name.startswith("--")}
        return action

    def parse_args(self, args=None, namespace=None):
        """Parse everything, see `argparse`; what is not known is refused with the nearest that is."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = difflib.get_close_matches(_dashed(unknown[0].partition("=")[0]), self._spellings, n=1)
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}" + (f" (did you mean {near[0]}?)" if near else "")
            )
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        """Parse what is known, see `argparse`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._as_told(word) for word in words], namespace)

    def _as_told(self, word: str) -> str:
        name, equals, value = word.partition("=")
        return self._spellings.get(_dashed(name), name) + equals + value


def _dashed(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name


def at_least(lowest: int) -> Callable[[str], int]:
    """A whole number that is not below `lowest`, as the `type` of an option."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < lowest:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least {lowest}")
        return number

    return read


def between(low: float, high: float) -> Callable[[str], float]:
    """A number above `low` and below `high`, as the `type` of an option."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = low
        if not low < number < high:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a number above {low} and below {high}")
        return number

    return read


def check_folder(option: str, folder: str | Path) -> None:
    """Raise a ValueError for a folder that cannot be made or written into, before what is expensive."""
    there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"`{option}` is {str(folder)!r}, but {str(there)!r} is a file. Name another folder.")
    if not os.access(there, os.W_OK):
        raise ValueError(f"`{option}` is {str(folder)!r}, but {str(there)!r} cannot be written. Name another folder.")


def check_file(option: str, path: str | Path) -> None:
    """Raise a ValueError for a file that cannot be written, before what is expensive."""
    if Path(path).is_dir():
        raise ValueError(f"`{option}` is {str(path)!r}, which is a folder, expected a file.")
    check_folder(option, Path(path).parent)
