"""What `trim-trainer train --help` says: our fields and those that every run sets, in groups; `--help-all` says the rest."""

HELP = {"-h", "--help", "--help-all", "--help_all"}

# Title -> names of fields, in this order. A test holds every field of `TrimConfig` that SFTConfig has not.
GROUPS = {
    "model and data": (
        "model_name_or_path", "model_revision", "dtype", "dataset_name", "dataset_config", "datasets", "dataset_train_split",
        "dataset_test_split", "dataset_calibration_split", "doc_to_text", "doc_to_choice", "doc_to_target",
        "max_train_samples", "max_eval_samples",
    ),
    "how far and when layers go": (
        "target_layers", "target_ratio", "trim_strategy", "trim_steps", "trim_delay", "layers_per_trim", "save_depths",
        "heal_depths", "max_metric_drop", "protected_layers",
    ),
    "which layers go": (
        "trim_unit", "importance", "calibration_size", "calibration_metric", "scan_batch_tokens", "racing_confidence",
    ),
    "which tokens stay": ("vocab_size", "vocab_corpus"),
    "what trains and recovers": (
        "scale_learning_rate", "sparse_update_ratio", "compensation_size", "distill_from", "distill_weight", "distill_temperature",
        "merge_adapter", "save_dtype", "use_peft",
    ),
    "every run": (
        "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "num_train_epochs", "max_steps",
        "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
        "max_length", "bf16", "gradient_checkpointing", "eval_strategy", "save_strategy", "logging_steps", "report_to",
        "seed", "push_to_hub", "hub_model_id",
    ),
}  # fmt: skip
USAGE = "trim-trainer train --config recipe.yaml [--field value ...]"
EXAMPLE = """example:
  trim-trainer train --config recipes/quickstart.yaml --model_name_or_path Qwen/Qwen3-0.6B --base_model Qwen/Qwen3-0.6B \\
      --dataset_name me/my-questions --target_layers 20 --output_dir out/mine

Every field is a key of a recipe too. --learning_rate and --learning-rate are the same. All other fields, those of
SFTConfig, ModelConfig and ScriptArguments: trim-trainer train --help-all
"""


def print_help(is_whole: bool) -> None:
    """Print the help of `trim-trainer train`; `is_whole`: every field."""
    from ..recipe import make_parser
    from ..training.hooks import actions_of

    parser = make_parser(
        prog="trim-trainer train", usage=USAGE, description="Train from a recipe while layers are dropped."
    )
    if is_whole:
        parser.print_help()
        return
    by_name = {action.dest: action for action in actions_of(parser)}
    formatter = parser.formatter_class(prog=parser.prog)
    formatter.add_text(f"usage: {USAGE}")
    formatter.add_text(parser.description)
    for title, names in GROUPS.items():
        formatter.start_section(title)
        formatter.add_arguments([by_name[name] for name in names])
        formatter.end_section()
    print(formatter.format_help())
    print(EXAMPLE, end="")
