"""`env` of a recipe: variables that are set before libraries are loaded, many of which read them only then."""

import os

from ..records.settings import read_settings, split_config


def set_environment(arguments: list[str]) -> None:
    """Set the variables that `env` of the recipe in a command line names.

    Raises:
        ValueError: `env` is no mapping, or the recipe none.
        OSError: no such recipe, or one that cannot be read.
    """
    path, _ = split_config(arguments)
    if path is None:
        return
    variables = read_settings(path).get("env") or {}
    if not isinstance(variables, dict):
        raise ValueError(f"{str(path)!r}: `env` is {variables!r}, expected a mapping, such as `env: {{NAME: value}}`.")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
