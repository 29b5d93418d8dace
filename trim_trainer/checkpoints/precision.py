"""The precision in which a model is stored: that of the base model it was loaded from, whatever it trains in."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation
from transformers.utils import CONFIG_NAME, cached_file

from ..hub.layout import INDEX, SINGLE
from ..records.json_files import read_json
from ..surgery.blueprint import build
from ..surgery.drop import is_quantized
from ..surgery.ties import plain_name

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # in safetensors
_ON_CPU = {  # whether oneDNN has instructions for it here
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
}
_IN_CACHE = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}


def stored_dtype(config: PretrainedConfig, cache_dir: str | None = None) -> torch.dtype | None:
    """The precision of most weights in the checkpoint that a model with this config was loaded from.

    Looks in the folder, or in the cache of the Hub (`cache_dir`; None: the usual one). None: the model was not loaded, or
    what it was loaded from is not there any more, or says nothing of it.
    """
    name = _most_common(config, cache_dir) or _named(config, cache_dir)
    return getattr(torch, name) if name in DTYPES else None


def dtype_to_save(model: PreTrainedModel, asked: str, stored: torch.dtype | None) -> torch.dtype:
    """The precision to store a model in, as `save_dtype` asks: `"auto"` is `stored`, unless the model itself is smaller."""
    if asked != AUTO:
        return getattr(torch, asked)
    return stored if stored is not None and stored.itemsize <= model.dtype.itemsize else model.dtype


def cast_tensors(
    model: PreTrainedModel, tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the tensors of a model as they are once it is loaded in `dtype`, on the CPU; what shares memory still does.

    Where nothing would change, `tensors` itself.
    """
    kinds, made, cast = dtypes_in(model, dtype), {}, {}
    if all(kinds.get(name, tensor.dtype) == tensor.dtype for name, tensor in tensors.items()):
        return tensors
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in made or tensor.numel() == 0:
            made[key] = tensor.detach().to("cpu", kinds.get(name, tensor.dtype))
        cast[name] = made[key]
    return cast


def say_dtype(directory: str | Path, dtype: torch.dtype) -> None:
    """Let the config in `directory` name the precision of the weights beside it, in each of its parts."""
    path = Path(directory) / CONFIG_NAME
    config = json.loads(path.read_text(encoding="utf-8"))
    _say(config, str(dtype).removeprefix("torch."))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def as_stored(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Within, the weights are rounded to `dtype`, and computed with in it, as who loads the saved model has them.

    On a CPU without instructions for `dtype` the rounded weights are computed with in float32. Afterwards they are what
    they were. A model with quantized weights, or inside adapters, is rounded where it is not.
    """
    kinds, before = dtypes_in(model, dtype), {}
    widened = {} if is_fast(dtype, model.device) else {dtype: torch.float32}
    for name, tensor in model.state_dict(keep_vars=True).items():
        kind = kinds.get(plain_name(name), tensor.dtype)
        if tensor not in before and kind != tensor.dtype:
            before[tensor] = tensor.data
            tensor.data = tensor.data.to(kind).to(widened.get(kind, kind))
    try:
        yield
    finally:
        for tensor, data in before.items():
            tensor.data = data


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device multiplies matrices of this type itself: a CPU that does not takes up to a hundred times as long."""
    if device.type != "cpu" or dtype not in _ON_CPU:
        return True
    return _ON_CPU[dtype]()


def dtypes_in(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The precision that each tensor has once a checkpoint of the model is loaded in `dtype`: some are kept in float32."""
    if is_quantized(model):
        return {}
    of_type = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    empty = build(of_type, model.config, dtype)
    plan = empty._get_dtype_plan(dtype)
    kept, kinds = build_glob_alternation(list(plan))[0] if plan else None, {}
    for name, tensor in empty.state_dict().items():
        if tensor.is_floating_point():
            kinds[name] = torch.float32 if kept and kept.search(name) else tensor.dtype
    return kinds


def num_bytes_in(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes of the weights of a model once it is loaded in `dtype`, with what it computes at the beginning beside them.

    Those that two modules share count once.
    """
    kinds = dtypes_in(model, dtype)
    tensors = dict(model.named_buffers()) | model.state_dict(keep_vars=True)
    return sum({each: each.numel() * kinds.get(name, each.dtype).itemsize for name, each in tensors.items()}.values())


def _find(config: PretrainedConfig, name: str, cache_dir: str | None) -> str | None:
    """The path of a file beside the config that a model was loaded with; None: there is none here."""
    if not config._name_or_path:
        return None
    try:
        revision = getattr(config, "_commit_hash", None)
        return cached_file(config._name_or_path, name, cache_dir=cache_dir, revision=revision, **_IN_CACHE)
    except OSError:  # a folder that is gone
        return None


def _most_common(config: PretrainedConfig, cache_dir: str | None) -> str | None:
    """Of the headers of all files: the precision of the most weights that have one of `DTYPES`."""
    names = {SINGLE}
    if _find(config, SINGLE, cache_dir) is None and (index := _find(config, INDEX, cache_dir)) is not None:
        names = set(read_json(index)["weight_map"].values())
    sizes = Counter()
    for path in filter(None, (_find(config, name, cache_dir) for name in names)):
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():
                tensor = tensors.get_slice(key)
                sizes[_NAMES.get(tensor.get_dtype())] += math.prod(tensor.get_shape())
    del sizes[None]
    return max(sizes, key=sizes.get, default=None)


def _named(config: PretrainedConfig, cache_dir: str | None) -> str | None:
    """Of the `config.json`: the precision that it names, itself or for a part of it."""
    path = _find(config, CONFIG_NAME, cache_dir)
    said = {} if path is None else read_json(path)
    parts = [said, *(part for part in said.values() if isinstance(part, dict))]
    return next((part[name] for part in parts for name in ("dtype", "torch_dtype") if part.get(name)), None)


def _say(config: dict, name: str) -> None:
    if "dtype" in config:
        config["dtype"] = name
    for part in config.values():
        if isinstance(part, dict) and "model_type" in part:
            _say(part, name)
