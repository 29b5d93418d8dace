"""What a trimming run refuses, before anything expensive happens."""

import copy
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate.utils import is_peft_model, parse_flag_from_env
from datasets import Dataset, IterableDataset
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, align_special_tokens
from trl import BEMACallback

from ..architectures.configs import num_layers
from ..architectures.halves import find_halves
from ..architectures.modules import find_layers
from ..architectures.table import find_architecture
from ..causes import tell
from ..checkpoints.loading import check_tokenizer, loading, read_config
from ..data.choices import CalibrationError, check_choices
from ..data.splits import NUM_STREAM_ROWS, RowKey, check_disjoint, draw_rows, first_rows, hold_out
from ..importance.unit import SUBLAYER
from ..records.files import HISTORY_NAME
from ..surgery.cpu_kernels import check_order
from ..surgery.drop import check_layers, check_tensors
from .config import TrimConfig
from .protection import lowest_depth
from .schedule import resolve_target

logger = logging.getLogger(__name__)


def check_model(
    model: str | PreTrainedModel, args: TrimConfig, peft_config=None, has_tokenizer: bool = True
) -> tuple[int, int]:
    """Check that the model can be trimmed as asked.

    Args:
        model: As for SFTTrainer.
        args: Of the run.
        peft_config: As for SFTTrainer.
        has_tokenizer: Whether the script brings one; else that beside the model is looked at.

    Returns:
        Its depth and the depth to reach.

    Raises:
        ValueError: names the setting, its value, the rule and the way out.
    """
    is_adapted = not isinstance(model, str) and is_peft_model(model)
    if is_adapted:
        peft_config, model = model.peft_config[model.active_adapter], model.get_base_model()
    _check_settings(args, peft_config)
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"A target is set and `peft_config` is a {type(peft_config).__name__}, which puts something in front of the "
            "prompt instead of into the layers. Use an adapter inside the layers, such as `LoraConfig`."
        )
    if replicated := getattr(peft_config, "layer_replication", None):
        raise ValueError(
            f"A target is set and `layer_replication` of `peft_config` is {replicated}, which makes several layers of the same "
            "weights: none of them can be dropped or saved by itself. Leave `layer_replication` out."
        )
    if isinstance(model, PreTrainedModel):
        check_order(model)
        find_layers(model)
        if not is_adapted:
            check_tensors(model)
        config = model.config
    else:
        config = _load_config(model, args, has_tokenizer)
        find_architecture(config)
    depth = num_layers(config)
    target = resolve_target(depth, args.target_layers, args.target_ratio)
    protected = check_layers(args.protected_layers or (), depth)
    if len(protected) > target:
        raise ValueError(
            f"`protected_layers` names {len(protected)} layers, but `target_layers` is {target}: protect fewer layers."
        )
    if args.trim_unit == SUBLAYER:
        find_halves(config)
    _check_reachable(config, depth, target, protected)
    return depth, target


def _check_reachable(config: PretrainedConfig, depth: int, target: int, protected: set[int]) -> None:
    """Raise a ValueError if so many layers have to stay that the target cannot be reached."""
    lowest = lowest_depth(config, depth, target, protected)
    if lowest > target:
        raise ValueError(
            f"`target_layers` is {target}, but {config.model_type!r} can only lose layers down to a depth of {lowest}: the "
            f"others hold what layers that stay need{' or are in `protected_layers`' if protected else ''} (see "
            "`droppable_layers`)."
        )


def _load_config(model: str, args: TrimConfig, has_tokenizer: bool) -> PretrainedConfig:
    options = {key: value for key, value in (args.model_init_kwargs or {}).items() if key in ("revision", "cache_dir")}
    with loading(model):
        if not has_tokenizer:
            check_tokenizer(model)
        return read_config(model, trust_remote_code=args.trust_remote_code, **options)


def _check_settings(args: TrimConfig, peft_config) -> None:
    """Raise a ValueError for what a run cannot do while layers drop, most of it with several processes."""
    plugin, fsdp = args.deepspeed_plugin, fsdp_settings(args)
    kind = "DeepSpeed" if plugin is not None else "FSDP" if fsdp else None
    rules = {
        "hub_revision": (
            args.push_to_hub and args.hub_revision is not None,
            f"{args.hub_revision!r}, but a run with a target publishes the branches `main` and `depth-N`. Leave it out",
        ),
        "fsdp_version": (
            fsdp.get("fsdp_version") == 1,
            "1, which flattens the weights of a layer into one. Use FSDP2: `fsdp_version: 2` in the configuration of accelerate "
            "(recipes/accelerate/fsdp2.yaml), or `accelerate_config: fsdp2`",
        ),
        "fsdp_activation_checkpointing": (
            fsdp.get("activation_checkpointing", False),
            "True, which hides each layer in another module. Set it to False, and `gradient_checkpointing` to True, which "
            "saves the same memory",
        ),
        "zero_stage": (
            plugin is not None and plugin.zero_stage == 3,
            "3, which spreads each layer over all processes in a way that layers cannot be taken out of. Use FSDP2 "
            "(recipes/accelerate/fsdp2.yaml), or ZeRO 2",
        ),
        "sparse_update_ratio": (
            plugin is not None and args.sparse_update_ratio is not None,
            f"{args.sparse_update_ratio}, with DeepSpeed: ZeRO counts the steps of all parameters as one, so none can begin "
            "to train later. Set it to None: ZeRO spreads the optimizer state that it would save",
        ),
        "peft_config": (
            bool(fsdp) and peft_config is not None,
            f"a {type(peft_config).__name__}, with FSDP, which shards the adapter together with the weights that it would be "
            "merged into. Train it by DDP (recipes/accelerate/ddp.yaml), where a quantized base saves the memory, or all "
            "parameters by FSDP",
        ),
        "max_metric_drop": (
            kind is not None and args.max_metric_drop is not None,
            f"{args.max_metric_drop}, with {kind}: a depth to come back to cannot be kept there. Leave it out, and keep "
            "depths with `save_depths`",
        ),
        "trim_unit": (
            kind is not None and args.trim_unit == SUBLAYER,
            f"'sublayer', with {kind}: it holds each layer as one piece, of which no half can go to another. Set it to 'layer'",
        ),
        "vocab_size": (
            kind is not None and args.vocab_size is not None,
            f"{args.vocab_size}, with {kind}, where a process may hold none of the weights. Make the vocabulary smaller first, "
            "with `trim-trainer drop --vocab-size`",
        ),
        "load_best_model_at_end": (
            kind is not None and args.load_best_model_at_end,
            f"True, with {kind}: dropped layers cannot be brought back there. Leave it out, and keep depths with "
            "`save_depths`",
        ),
    }
    for name, (is_refused, why) in rules.items():
        if is_refused:
            raise ValueError(f"A target is set and `{name}` is {why}.")
    if args.hub_revision is not None:
        logger.warning(
            "`hub_revision` is %r, but what has a target is published as the branches `main` and `depth-N`: `push_to_hub` will "
            "refuse it. Leave it out.",
            args.hub_revision,
        )


def fsdp_settings(args: TrimConfig) -> dict[str, Any]:
    """What FSDP is to do, by `fsdp` of the arguments or by `accelerate launch`, which tells its processes by variables.

    Empty where there is no FSDP. Whether each layer is sharded for itself can only be seen of the sharded model, see
    `check_sharded`.
    """
    if args.fsdp:
        return args.fsdp_plugin_args or args.fsdp_config  # of XLA there are no arguments for accelerate
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return {}
    return {
        "fsdp_version": int(os.environ.get("FSDP_VERSION", "1")),
        "activation_checkpointing": parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"),
    }


def check_sharded(model: PreTrainedModel) -> None:
    """Raise a ValueError if FSDP holds weights of several layers together, of which none could be taken out."""
    whole = [type(layer).__name__ for layer in find_layers(model) if not isinstance(layer, FSDPModule)]
    if whole:
        raise ValueError(
            f"FSDP shards {len(whole)} layers together with others, so they cannot be dropped one by one. Set "
            f"`fsdp_auto_wrap_policy` to TRANSFORMER_BASED_WRAP and `fsdp_transformer_layer_cls_to_wrap` to {whole[0]}, or "
            "leave the latter out."
        )


def check_router_loss(trainer) -> None:
    """Raise a ValueError for a router loss that SFTTrainer cannot compute, before layers are scored for a run that fails."""
    if not trainer.aux_loss_enabled:
        return
    config = trainer.causal_lm.config.get_text_config()
    missing = [name for name in ("num_experts", "num_experts_per_tok") if not getattr(config, name, None)]
    if missing:
        raise ValueError(
            f"`router_aux_loss_coef` is {trainer.router_aux_loss_coef}"
            f"{' (the default of the model)' if trainer.args.router_aux_loss_coef is None else ''}, but SFTTrainer cannot "
            f"compute the routers' loss of {type(trainer.causal_lm).__name__}: its config says no "
            f"`{'` and no `'.join(missing)}`. Set `router_aux_loss_coef` to 0.0."
        )


def check_generation(trainer) -> None:
    """Raise a ValueError for a generation config that no save would write, the first of which comes after training."""
    model = trainer.causal_lm
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    aligned = SimpleNamespace(config=copy.deepcopy(model.config), generation_config=copy.deepcopy(generation))
    try:
        aligned.generation_config.validate(strict=True)
    except ValueError as error:
        align_special_tokens(aligned, trainer.processing_class)  # as the Trainer does when it begins
        if getattr(generation, "_original_object_hash", None) == hash(aligned.generation_config):
            return  # Transformers saves one that is as it was loaded
        changed = (
            "Training gives it the special tokens of the tokenizer"
            if aligned.generation_config != generation
            else "It was changed"
        )
        raise ValueError(
            f"The generation config of the model is invalid: {tell(error)} {changed}, and Transformers saves a changed one only if "
            "it is valid. Correct it first, by `model.generation_config.do_sample = True` or in generation_config.json."
        ) from error


def check_callbacks(trainer) -> None:
    """Raise a ValueError for a callback that averages weights layer by layer: those that go leave it with other layers."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, BEMACallback):
            raise ValueError(
                f"A target is set, and {type(callback).__name__} is among the callbacks: it averages the weights that the model has "
                "when training begins, so that what it saves would have layers that its config does not count. Leave it out, or "
                "train what is left with it, without a target."
            )


def check_distillation(trainer) -> None:
    """Raise a ValueError for what a run with a teacher cannot do."""
    args = trainer.args
    rules = {
        "torch_compile": args.torch_compile,
        "compute_loss_func": trainer.compute_loss_func is not None,
        "label_smoothing_factor": args.label_smoothing_factor > 0,
        "fsdp": trainer.is_fsdp_enabled,
        "deepspeed": trainer.is_deepspeed_enabled,
    }
    for name, is_set in rules.items():
        if is_set:
            raise ValueError(
                f"`distill_from` is {args.distill_from!r} and `{name}` is set, which cannot go together: the hidden states "
                "of the scored positions are taken out of the model's own forward pass. Leave one of them out."
            )


def check_output_dir(output_dir: str, resume_from_checkpoint: str | bool | None, overwrite: bool) -> None:
    """Refuse a folder that holds another run, unless that is to be resumed or replaced.

    Raises:
        FileExistsError: names what was found and the ways out.
    """
    found = _of_a_run(output_dir)
    if found and not resume_from_checkpoint and not overwrite:
        raise FileExistsError(
            f"`output_dir` {output_dir!r} holds another run ({', '.join(sorted(path.name for path in found)[:3])}). "
            "Pass `resume_from_checkpoint=True` to go on with it, set `overwrite_output_dir` to replace it, or name "
            "another folder."
        )


def clear_output_dir(output_dir: str) -> None:
    """Remove another run, which this one replaces."""
    for path in _of_a_run(output_dir):
        logger.info("Removing %s of the run that is overwritten.", path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _of_a_run(output_dir: str) -> list[Path]:
    folder = Path(output_dir)
    return [*folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), *folder.glob("depth-*"), *folder.glob(HISTORY_NAME)]


def split_calibration(
    train_dataset: Dataset | IterableDataset | None,
    eval_dataset: Dataset | IterableDataset | dict | None,
    calibration_dataset: Iterable[dict] | None,
    args: TrimConfig,
    formatting_func: Callable[[dict], str] | None = None,
) -> tuple[Dataset | IterableDataset, Iterable[dict]]:
    """Check all data sets and return the training set and the calibration set, which shares nothing with the others.

    No stream is read to its end, which it may not have: of one to train on, so far as examples are held out of it; of
    one to calibrate on, the rows that are used; of one to evaluate on, `NUM_STREAM_ROWS`.

    Raises:
        CalibrationError: overlapping sets, no example left to calibrate on, or a choice without one right answer.
    """
    if train_dataset is None:
        raise ValueError("`train_dataset` is None, expected a data set to train on.")
    if args.trim_strategy == "epoch" and isinstance(train_dataset, IterableDataset):
        raise ValueError(
            "`trim_strategy` is 'epoch', and `train_dataset` is a stream, of which nobody knows where an epoch ends. Set it to "
            "'steps'."
        )
    key = RowKey(args.dataset_text_field, formatting_func)
    evaluation = {name: _looked_at(dataset, name) for name, dataset in named_evaluation_sets(eval_dataset).items()}
    if calibration_dataset is not None and not hasattr(calibration_dataset, "__len__"):
        calibration_dataset = draw_rows(calibration_dataset, args.calibration_size, args.seed)
    named = {"train_dataset": train_dataset, **evaluation, "calibration_dataset": calibration_dataset}
    for name, dataset in named.items():
        if dataset is not None and not isinstance(dataset, IterableDataset):
            check_choices(dataset, name)
    keys = {each for dataset in evaluation.values() for each in key.of_all(dataset)}
    if calibration_dataset is None:
        train_dataset, held_out = hold_out(train_dataset, keys, args.calibration_size, args.seed, key)
        if isinstance(train_dataset, IterableDataset):
            check_choices(held_out, "train_dataset")
        return train_dataset, held_out
    check_disjoint(calibration_dataset, keys, key)
    if len(calibration_dataset) == 0:
        raise CalibrationError("`calibration_dataset` is empty, expected at least one example.")
    return train_dataset, draw_rows(calibration_dataset, args.calibration_size, args.seed)


def named_evaluation_sets(
    eval_dataset: Dataset | IterableDataset | dict | None,
) -> dict[str, Dataset | IterableDataset]:
    """The evaluation sets by what a message calls them."""
    if not isinstance(eval_dataset, dict):
        return {} if eval_dataset is None else {"eval_dataset": eval_dataset}
    return {f"eval_dataset[{name!r}]": dataset for name, dataset in eval_dataset.items() if dataset is not None}


def _looked_at(dataset: Dataset | IterableDataset, name: str) -> Dataset | list[dict]:
    """An evaluation set; of a long stream its first rows."""
    if not isinstance(dataset, IterableDataset):
        return dataset
    rows, is_whole = first_rows(dataset)
    if not is_whole:
        logger.warning(
            "`%s` is a stream of more than %d rows: the calibration set is compared with these only, and neither the model "
            "card nor the history says how good the model is on it. Pass a `Dataset`, or a part, such as "
            "`stream.take(%d)`, to have both.",
            name,
            NUM_STREAM_ROWS,
            NUM_STREAM_ROWS,
        )
    return rows
