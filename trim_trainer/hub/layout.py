"""Which files of a folder or repository loaders take: rows of patterns, since what else lies there must not change it."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from ..records.files import ADAPTER_CONFIG, ADAPTER_DIR

CONFIG = "config.json"
TEMPLATES = "additional_chat_templates"  # a folder
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Kind:
    """Files that a loader chooses among, or reads all of.

    Attributes:
        patterns: Names, in the root or in the folder of an adapter.
        is_model: Whether they belong to the weights, and so to the model that is published alone; of the others, such
            as a chat template, people may have added one of their own.
    """

    patterns: tuple[str, ...]
    is_model: bool


# What Transformers, PEFT and vLLM look for by name. Files for other loaders (GGUF, ONNX) change nothing for these.
KINDS = {
    # Transformers goes from a repository with an adapter's config to the base model that it names.
    "adapter": Kind((ADAPTER_CONFIG, "adapter_model*"), True),
    # A name without a number comes before an index, `safetensors` before the others; vLLM takes all there are.
    "weights": Kind(
        ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json",
         "tf_model*.h5", "tf_model*.h5.index.json", "flax_model*.msgpack", "flax_model*.msgpack.index.json",
         "consolidated*.pth", "params.json"), True,
    ),
    # Says of weights that they are quantized.
    "quantization": Kind(("quantize_config.json", "quant_config.json", "hf_quant_config.json"), True),
    "generation": Kind(("generation_config.json",), False),
    "tokenizer": Kind(
        ("tokenizer*.json", "tokenizer*.model", "*.tiktoken", "tiktoken.model", "tekken.json", "spiece.model",
         "sentencepiece*.model", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json",
         "added_tokens.json", "chat_template.j*", f"{TEMPLATES}/*.jinja"), False,
    ),
    "processor": Kind(("*processor_config.json",), False),
}  # fmt: skip


def kind_of(name: str) -> str | None:
    """The kind of a file, by its path in the repository; None: no loader looks for it there."""
    path = PurePosixPath(name)
    if path.parts[0] == ADAPTER_DIR and len(path.parts) > 1:
        return "adapter" if _matches(path.name, KINDS["adapter"]) else None
    if len(path.parts) > 1 and path.parts[0] != TEMPLATES:
        return None
    return next((kind for kind, row in KINDS.items() if _matches(name, row)), None)


def stale_files(there: Iterable[str], staged: Iterable[str], ours: Iterable[str] | None) -> list[str]:
    """Files of a revision that are not published now, and that would change what loaders make of those that are.

    Args:
        there: What the revision holds.
        staged: What is published.
        ours: What the revision held when it was published last; None: it never was, and all is of an earlier model.
    """
    staged, ours = set(staged), None if ours is None else set(ours)
    # A tokenizer is only replaced by another: where none is published, people may have brought it.
    replaced = {kind_of(name) for name in staged} | {"generation"}
    return [
        name
        for name in sorted(set(there) - staged)
        if (kind := kind_of(name)) is not None
        and (KINDS[kind].is_model or (kind in replaced and (ours is None or name in ours)))
    ]


def weights_taken(names: Iterable[str]) -> set[str]:
    """The weight files in the root by which Transformers begins: one file, else the index of shards."""
    names = set(names)
    return next(({name} for name in (SINGLE, INDEX) if name in names), set())


def _matches(name: str, row: Kind) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in row.patterns)
