"""What a checkpoint says for readers before Transformers 5, beside what it says already; without it they go wrong silently.

Transformers 5 writes the rotary embedding's settings as `rope_parameters` alone. Readers that look for `rope_theta` take
their default in its place, and compute something else without a word; vLLM, llama.cpp and others read configs alike.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig, __version__
from transformers.utils import CONFIG_NAME

TOKENIZER_CONFIG = "tokenizer_config.json"
# Model type -> names before Transformers 5, where they are not the same.
ROPE_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert-decoder": {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"},
}
# Model type -> fields that were renamed.
RENAMED = dict.fromkeys(("qwen3_moe", "qwen3_vl_moe_text"), {"num_local_experts": "num_experts"})
# Where layers of a kind have settings of their own, the name of that kind's base.
THETA_OF = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
# Model types that refuse any other `rope_scaling` than of these keys.
SCALING_KEYS = dict.fromkeys(("phi3", "phi4_multimodal"), ("type", "short_factor", "long_factor"))
# Keys of `rope_parameters` that were fields of their own; the others were `rope_scaling`.
_OWN = ("rope_theta", "partial_rotary_factor")
# Found by saving a tiny model of every type, with a base of its own, lists per layer that are irregular, and these fields:
# Transformers 4.57.6 computes the same logits. Of those that are missing here it does not know the type, refuses the
# config (qwen3_next's relatives, jamba), or computes something else (olmo3 with two bases).
OLDEST_READER = "4.57"
ROPE_TYPES = {"default", "linear", "dynamic", "yarn", "llama3"}
READ_RIGHT = frozenset(
    """
    arcee aria_text bamba bart bert bert-generation big_bird biogpt bitnet blenderbot blenderbot-small bloom camembert
    codegen cohere cohere2 ctrl data2vec-text deepseek_v2 deepseek_v3 diffllama doge dots1 electra ernie ernie4_5
    ernie4_5_moe exaone4 falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2 gemma3 gemma3_text git glm glm4 glm4_moe
    gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoeshared helium
    hunyuan_v1_dense hunyuan_v1_moe jetmoe lfm2 llama llama4 llama4_text longcat_flash mamba marian mbart megatron-bert
    minimax ministral mistral mixtral moshi mpt mvp nemotron olmo olmo2 olmoe openai-gpt opt pegasus persimmon phi phi3
    phi4_multimodal phimoe plbart prophetnet qwen2 qwen3 qwen3_moe qwen3_next rembert roberta roberta-prelayernorm
    roc_bert roformer rwkv seed_oss smollm3 stablelm starcoder2 trocr vaultgemma whisper xglm xlm xlm-roberta
    xlm-roberta-xl xlnet xmod
    """.split()
)


def write_older_fields(directory: str | Path) -> None:
    """Add to the config and to the tokenizer's config in `directory` what older readers look for.

    A field is added only if the installed version reads the same config with it.
    """
    folder = Path(directory)
    for name, rewrite in ((CONFIG_NAME, with_older_fields), (TOKENIZER_CONFIG, with_older_names)):
        if (folder / name).is_file():
            now = json.loads((folder / name).read_text(encoding="utf-8"))
            new = rewrite(now)
            if new != now:
                (folder / name).write_text(json.dumps(new, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def oldest_reader(config: PretrainedConfig) -> str:
    """The version of Transformers from which on a checkpoint with this config loads right, as far as it was tried."""
    written = with_older_fields(json.loads(config.to_json_string()))
    parts = [written, *(part for part in written.values() if _is_config(part))]
    is_said = all(older_fields(part).keys() <= part.keys() and _rope_type(part) in _tried(part) for part in parts)
    return OLDEST_READER if is_said and config.model_type in READ_RIGHT else ".".join(__version__.split(".")[:2])


def with_older_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` with those of older readers, in every part that has a rotary embedding."""
    new = {name: with_older_fields(part) if _is_config(part) else part for name, part in config.items()}
    for name, value in older_fields(config).items():
        if name not in new and _changes_nothing(new, name, value):
            new[name] = value
    return new


def older_fields(config: dict[str, Any]) -> dict[str, Any]:
    """What one part of a config says of its rotary embedding and dtype, as fields of before Transformers 5."""
    found: dict[str, Any] = {}
    rope = config.get("rope_parameters") or {}
    kinds = {kind: settings for kind, settings in rope.items() if isinstance(settings, dict)}
    for kind, settings in kinds.items():
        if kind in THETA_OF and "rope_theta" in settings:
            found[THETA_OF[kind]] = settings["rope_theta"]
    main = kinds.get("full_attention") if kinds else rope
    found |= {name: main[name] for name in _OWN if main and main.get(name) is not None}
    if main and main.get("rope_type", "default") != "default":
        scaling = {name: value for name, value in main.items() if name not in _OWN}
        keys = SCALING_KEYS.get(config.get("model_type", ""), scaling)
        found["rope_scaling"] = {name: (scaling | {"type": main["rope_type"]})[name] for name in keys}
    if isinstance(config.get("dtype"), str):
        found["torch_dtype"] = config["dtype"]
    renamed = RENAMED.get(config.get("model_type", ""), {})
    found |= {older: config[name] for name, older in renamed.items() if name in config}
    names = ROPE_NAMES.get(config.get("model_type", ""), {})
    return {names.get(name, name): value for name, value in found.items()}


def with_older_names(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's config in names that both know: Transformers 5 reads them as its own."""
    new = dict(tokenizer)
    if new.get("tokenizer_class") == "TokenizersBackend":
        new["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(new.get("extra_special_tokens"), list) and "additional_special_tokens" not in new:
        new["additional_special_tokens"] = new.pop("extra_special_tokens")
    return new


def _rope_type(config: dict[str, Any]) -> str:
    return (scaling := config.get("rope_scaling") or {}).get("rope_type") or scaling.get("type", "default")


def _tried(config: dict[str, Any]) -> set[str]:
    return {"default", "longrope"} if config.get("model_type") in SCALING_KEYS else ROPE_TYPES


def _changes_nothing(config: dict[str, Any], name: str, value: Any) -> bool:
    """Whether the installed version reads a config with one more field as it does without."""
    read = _read(config)
    if read is None:
        return False
    try:
        return _read(config | {name: value}) == read
    except (KeyError, ValueError, TypeError):  # an older field that it takes for something else, and refuses
        return False


def _is_config(part: Any) -> bool:
    return isinstance(part, dict) and "model_type" in part


def _read(config: dict[str, Any]) -> dict[str, Any] | None:
    """What the installed version makes of a config; None: it does not know the type, as with code of its own."""
    if config.get("model_type") not in CONFIG_MAPPING:
        return None
    with TemporaryDirectory() as folder:  # an infinity of JSON is decoded where a file is read
        path = Path(folder) / CONFIG_NAME
        path.write_text(json.dumps(config), encoding="utf-8")
        read = CONFIG_MAPPING[config["model_type"]].from_json_file(path).to_dict()
    for rope in (read.get("rope_parameters"), *(read.get("rope_parameters") or {}).values()):
        if isinstance(rope, dict) and rope.get("type") == rope.get("rope_type"):
            rope.pop("type", None)  # an older name of the same
    return read
