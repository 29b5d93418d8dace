"""Where a config says what the text decoder is, and how deep."""

from transformers import (
    PretrainedConfig,
)

from .errors import UnsupportedArchitectureError
from .rewriting import TEXT_CONFIGS, depth_of


def text_path(config: PretrainedConfig) -> tuple[str, ...]:
    """Names that lead from a config to that of its text decoder; empty: it is that config."""
    for name in TEXT_CONFIGS:
        part = config.__dict__.get(name)
        if isinstance(part, PretrainedConfig):
            return (name, *text_path(part))
    return ()


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of the text decoder: the config itself, or the part of it."""
    for name in text_path(config):
        config = getattr(config, name)
    return config


def num_layers(config: PretrainedConfig) -> int:
    """Return the number of decoder layers.

    Raises:
        UnsupportedArchitectureError: no field says it.
    """
    depth = depth_of(text_config(config).to_dict())
    if depth is None:
        raise UnsupportedArchitectureError(f"The config of {config.model_type!r} does not say how many layers it has.")
    return depth
