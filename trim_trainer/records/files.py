"""Names of the files and folders that a run leaves beside the weights."""

HISTORY_NAME = "trim_history.json"
RUN_NAME = "trim_run.json"  # in checkpoints to resume from: what the run was asked for
RECIPE_NAME = "recipe.yaml"
CARD_NAME = "README.md"
IMPORTANCE_PLOT = "trim_importance.png"
METRIC_PLOT = "trim_metric.png"
ADAPTER_DIR = "adapter"  # beside a trimmed base model, where they are not merged
ADAPTER_CONFIG = "adapter_config.json"
DEPTH_DIR = "depth-"  # + the number of layers: a depth on the way that was kept
EXPORT_NAME = "export.json"  # in what `export` wrote: what it is, and how it compares with the checkpoint
