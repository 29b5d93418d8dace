"""The same accuracy by lm-evaluation-harness, which many readers trust more than a number of ours."""

import importlib.util
import json
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.choices import has_choices
from .tasks import Task


def check_lm_eval(tasks: list[Task]) -> None:
    """Look, before a model is measured, whether lm-evaluation-harness is there and can be handed the choices of tasks.

    Raises:
        ModuleNotFoundError: it is not installed.
        ValueError: choices are chat messages, of which it makes other texts than training does.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ModuleNotFoundError(
            "lm-evaluation-harness is not installed. Run `pip install 'trim-trainer[lm_eval]'`, or leave `--lm-eval` out."
        )
    for task in tasks:
        row = next(iter(task.subset()), {})
        if has_choices(row) and not isinstance(row["prompt"], str):
            raise ValueError(
                f"The choices of the task {task.name!r} are chat messages, which lm-evaluation-harness puts together in its own "
                "way. Leave `--lm-eval` out; the accuracy of `evaluate` is of them as they train."
            )


def lm_eval_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> float:
    """Let lm-evaluation-harness choose the choice with the largest log-probability.

    The examples are handed over as prompts and choices, with the end-of-text token behind each choice, where training put
    it: then both score the same tokens.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer.
        task: With choices.

    Raises:
        ModuleNotFoundError: a part of it is not installed.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"lm-evaluation-harness is not installed ({error.name}). Run `pip install 'trim-trainer[lm_eval]'`."
        ) from error
    end = tokenizer.eos_token or ""
    rows = [
        {**row, "choices": [choice if choice.endswith(end) else choice + end for choice in row["choices"]]}
        for row in task.subset()
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        described = ConfigurableTask(
            config={
                "task": task.name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(path)}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{prompt}}",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        )
        begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, add_bos_token=begins)
        found = simple_evaluate(model=scorer, tasks=[described], bootstrap_iters=0, verbosity="ERROR")
    return found["results"][task.name]["acc,none"]
