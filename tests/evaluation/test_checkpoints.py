"""Checkpoints side by side: what is measured is what independent code measures."""

import json
import math

import forked  # noqa: F401  the server of all processes
import pytest
import torch
import yaml
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from trim_trainer.cli.main import main
from trim_trainer.data.metrics import macro_f1, majority_accuracy
from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.evaluation.tasks import read_task, read_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, a task with choices whose columns have to be mapped, and running text."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name, depth in (("deep", 6), ("shallow", 3)):
        make_model(num_layers=depth).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    rows = [
        {"query": row["prompt"], "options": [each.strip() for each in row["choices"]], "gold": row["answer"]}
        for row in make_examples(40)
    ]
    Dataset.from_list(rows).to_json(folder / "colours.jsonl")
    task = {"dataset_name": str(folder / "colours.jsonl"), "dataset_test_split": "train"}
    task |= {"doc_to_text": "query", "doc_to_choice": "options", "doc_to_target": "gold"}
    (folder / "colours.yaml").write_text(yaml.safe_dump(task))
    (folder / "prose.txt").write_text("the cat sat on the mat\n\nthe dog ran to the red road\n")
    prose = {"dataset_name": str(folder / "prose.txt"), "dataset_test_split": "train"}
    (folder / "prose.yaml").write_text(yaml.safe_dump(prose))
    return folder


@pytest.fixture(scope="module")
def reports(folder):
    """What the command says of both, with lm-evaluation-harness beside it."""
    torch.set_num_threads(1)
    models, tasks = (
        [str(folder / name) for name in ("deep", "shallow")],
        [f"{folder / 'colours'}.yaml", f"{folder / 'prose'}.yaml"],
    )
    output = folder / "numbers.json"
    assert main(["evaluate", *models, "--task", *tasks, "--lm-eval", "--output", str(output)]) == 0
    return json.loads(output.read_text())


def log_likelihood(model, prompt, text):
    """Of a text behind a prompt, by one plain pass."""
    tokenizer = make_tokenizer()
    ids, start = tokenizer(prompt + text)["input_ids"], len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids)))


def test_accuracy_is_that_of_plain_passes_and_of_lm_eval(reports, folder):
    for report, name, depth in zip(reports, ("deep", "shallow"), (6, 3), strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder / name).eval()
        right = 0
        for example in make_examples(40):
            scores = [log_likelihood(model, example["prompt"], choice + "</s>") for choice in example["choices"]]
            right += scores.index(max(scores)) == example["answer"]
        assert report["quality"]["colours"]["accuracy"] == pytest.approx(right / 40)
        assert report["lm_eval_accuracy"]["colours"] == pytest.approx(right / 40)
        assert report["depth"] == depth and report["num_parameters"] == model.num_parameters()


def test_perplexity_is_that_of_the_whole_text(reports, folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "deep").eval()
    text = "the cat sat on the mat the dog ran to the red road"
    ids = make_tokenizer()(text)["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert reports[0]["quality"]["prose"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert reports[0]["quality"]["prose"]["accuracy"] is None


def test_speed_memory_and_load_time_are_measured(reports):
    deep, shallow = reports
    for name in ("decode_tokens_per_second", "prefill_tokens_per_second", "load_seconds", "peak_memory_bytes"):
        assert deep[name] > 0 and shallow[name] > 0
    assert shallow["num_bytes"] < deep["num_bytes"]


def test_macro_f1_counts_a_class_that_is_never_given_as_nothing():
    rows = [{"prompt": "Question :", "choices": [" red", " blue"], "answer": answer} for answer in (0, 0, 0, 1)]
    examples = tokenize_examples(rows, make_tokenizer())
    # Class red: precision 3/4, recall 1, F1 6/7; class blue: never given, F1 0.
    assert macro_f1([0, 0, 0, 0], examples) == pytest.approx((6 / 7 + 0) / 2)
    assert macro_f1([0, 0, 0, 1], examples) == pytest.approx(1.0)


def test_the_most_frequent_answer_is_a_class_or_where_answers_do_not_recur_a_place():
    tokenizer = make_tokenizer()
    classes = [{"prompt": "Question :", "choices": [" red", " blue"], "answer": answer} for answer in (0, 0, 0, 1)]
    classes[0] |= {"choices": [" blue", " red"], "answer": 1}  # the same answer in another place
    assert majority_accuracy(tokenize_examples(classes, tokenizer)) == 3 / 4
    exam = [
        {"prompt": "Question :", "choices": choices, "answer": answer}
        for choices, answer in (([" red", " blue"], 1), ([" cat", " dog"], 1), ([" mat", " road"], 0))
    ]
    assert majority_accuracy(tokenize_examples(exam, tokenizer)) == 2 / 3  # not 1: no answer is right twice


def test_without_a_task_only_speed_and_size_are_printed(folder, capsys):
    assert main(["evaluate", str(folder / "shallow")]) == 0
    printed = capsys.readouterr().out
    assert "decoding, tokens/s" in printed and "accuracy" not in printed


def test_a_limit_draws_the_same_examples_each_time(folder):
    task = read_task(folder / "colours.yaml", limit=5)
    assert len(task.subset()) == 5 and task.subset()["prompt"] == task.subset()["prompt"]


def test_what_is_missing_is_said(folder, capsys):
    assert main(["evaluate", str(folder / "nowhere"), "--task", str(folder / "colours.yaml")]) == 2
    assert "nowhere" in capsys.readouterr().err
    (folder / "typo.yaml").write_text("dataset_nam: x\n")
    assert main(["evaluate", str(folder / "deep"), "--task", str(folder / "typo.yaml")]) == 2
    assert "dataset_nam" in capsys.readouterr().err


def test_a_task_prepares_texts_as_its_recipe_says(folder, tmp_path):
    """Cut, ended and masked as by SFTTrainer with the same settings."""
    (tmp_path / "other.jinja").write_text("{% for m in messages %}{{ m.content }} or {% endfor %}")
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": " red"}],
        }
        for row in make_examples(6)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "chat.jsonl")
    settings = {
        "chat_template_path": str(tmp_path / "other.jinja"), "max_length": 6, "truncation_mode": "keep_end",
        "completion_only_loss": False,
    }  # fmt: skip
    task = {"dataset_name": str(tmp_path / "chat.jsonl"), "dataset_test_split": "train"} | settings
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(task))
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)
    trainer = SFTTrainer(make_model(), args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer())
    for example, row in zip(
        read_task(tmp_path / "chat.yaml").examples(make_tokenizer()), trainer.train_dataset, strict=True
    ):
        assert list(example.prompt_ids + example.choice_ids[0]) == row["input_ids"]
        assert list(example.choice_labels[0]) == row["labels"][1:]


def test_running_text_may_stand_in_another_field(folder, tmp_path):
    (tmp_path / "prose.jsonl").write_text('{"content": "the cat sat on the mat"}\n{"content": "the dog ran"}\n')
    task = {
        "dataset_name": str(tmp_path / "prose.jsonl"),
        "dataset_test_split": "train",
        "dataset_text_field": "content",
    }
    (tmp_path / "prose.yaml").write_text(yaml.safe_dump(task))
    (example,) = read_task(tmp_path / "prose.yaml").examples(make_tokenizer())
    ids = make_tokenizer()("the cat sat on the mat the dog ran")["input_ids"]
    assert list(example.prompt_ids + example.choice_ids[0]) == ids


def test_tasks_of_one_name_are_told_apart_by_their_folders(folder, tmp_path, capsys):
    for name, rows in (("a", 5), ("b", 9)):
        (tmp_path / name).mkdir()
        Dataset.from_list(make_examples(rows)).to_json(tmp_path / name / "data.jsonl")
        task = {"dataset_name": str(tmp_path / name / "data.jsonl"), "dataset_test_split": "train"}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(task))
    paths = [str(tmp_path / name / "recipe.yaml") for name in ("a", "b")]
    assert main(["evaluate", str(folder / "shallow"), "--task", *paths, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert {name: each["num_examples"] for name, each in report["quality"].items()} == {"a/recipe": 5, "b/recipe": 9}
    assert [task.name for task in read_tasks(paths[:1], reserved=["recipe"])] == ["a/recipe"]
    assert main(["evaluate", str(folder / "shallow"), "--task", paths[0], paths[0]]) == 2
    assert "Two tasks are called 'a/recipe'" in capsys.readouterr().err


def test_what_the_last_model_or_task_lacks_is_said_before_the_first_is_measured(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "trim_trainer.evaluation.checkpoints.run_alone", lambda *_: pytest.fail("something is measured")
    )
    assert main(["evaluate", str(folder / "deep"), str(folder / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    chat = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"],
         "choices": [[{"role": "assistant", "content": choice}] for choice in row["choices"]]}
        for row in make_examples(4)
    ]  # fmt: skip
    Dataset.from_list(chat).to_json(tmp_path / "chat.jsonl")
    (tmp_path / "chat.yaml").write_text(
        yaml.safe_dump({"dataset_name": str(tmp_path / "chat.jsonl"), "dataset_test_split": "train"})
    )
    assert main(["evaluate", str(folder / "deep"), "--task", str(tmp_path / "chat.yaml"), "--lm-eval"]) == 2
    assert "choices of the task 'chat' are chat messages" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", str(folder / "deep"), "--task", str(folder / "colours.yaml"), "--lm-eval"]) == 2
    assert "lm-evaluation-harness is not installed" in capsys.readouterr().err


def test_none_in_a_recipe_is_no_value_for_a_task_too(folder):
    (folder / "whole.yaml").write_text((folder / "colours.yaml").read_text() + "max_length: none\n")
    assert read_task(folder / "whole.yaml").texts.max_length is None
