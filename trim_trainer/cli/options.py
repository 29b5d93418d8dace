"""Options as people write them: `--learning-rate` and `--learning_rate` are the same one, in every command."""

import argparse
import sys


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

    def parse_known_args(self, args=None, namespace=None):
        """Parse what is known, see `argparse`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._as_told(word) for word in words], namespace)

    def _as_told(self, word: str) -> str:
        name, equals, value = word.partition("=")
        return self._spellings.get(_dashed(name), name) + equals + value


def _dashed(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name
