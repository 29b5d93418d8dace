"""README.md is short, and what it shows runs."""

import re
from pathlib import Path

from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

README = Path(__file__).parents[2] / "README.md"
MAX_BYTES = 9_000


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= MAX_BYTES


def test_the_script_of_the_readme_runs_as_it_stands_on_another_model(tmp_path, monkeypatch):
    (script,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    small = {'"HuggingFaceTB/SmolLM2-135M"': '"tiny"', "target_layers=20": "target_layers=4, use_cpu=True"}
    for written, instead in small.items():
        assert script.count(written) == 1
        script = script.replace(written, instead)
    make_model().save_pretrained(tmp_path / "tiny")
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    for split, (number, first) in {"train": (96, 0), "test": (24, 100)}.items():
        Dataset.from_list(make_examples(number, first)).to_json(tmp_path / f"{split}.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})  # noqa: S102
    assert AutoModelForCausalLM.from_pretrained("out").config.num_hidden_layers == 4


def test_the_readme_says_a_phrase_of_every_folder_and_of_no_other():
    (tree,) = re.findall(r"^trim_trainer/\n((?:    .*\n)+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    named = [line.split()[0] for line in tree.splitlines() if len(line.split()) > 1]
    package = README.parent / "trim_trainer"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert set(named) == folders | {"recipe.py"} and len(named) == len(set(named)) == len(tree.splitlines())


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert len(local) > 10 and not [link for link in local if not (README.parent / link).exists()]
