"""The pages: what they show runs. Python as it stands on other names and a smaller model, commands through their own parsers."""

import contextlib
import os
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import exports
import pytest
import torch
from datasets import Dataset
from forked import CONTEXT
from hub import WRITE_TOKEN, HubServer
from publishing import connect
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

import trim_trainer
from trim_trainer import recipe
from trim_trainer.cli.main import main
from trim_trainer.cli.options import Parser
from trim_trainer.evaluation.tasks import read_task
from trim_trainer.exporting.targets import TARGETS
from trim_trainer.scoring import speed

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT / "docs" / "pages").as_posix(): path for path in (ROOT / "docs" / "pages").rglob("*.md")
}
HOME, FIRST, HUB, CARD = "index.md", "get-started.md", "hub.md", "card/README.md"
RUN_ELSEWHERE = (HOME, FIRST, HUB)
# What a page names -> what stands for it here: tiny models, of which the first goes from six layers to four.
DEPTHS = {"SmolLM2-135M": 6, "Qwen3-0.6B": 28}
REPLACED = {
    "HuggingFaceTB/SmolLM2-135M": "SmolLM2-135M",
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
    "me/SmolLM2-ICD10-trimmed": "out",
    "TrimConfig(": 'TrimConfig(use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, ',
    "target_layers=20": "target_layers=4",
    "save_depths=[26, 23]": "save_depths=[5]",
    "depth-26": "depth-5",
    "[3, 17]": "[1, 3]",
    '"out/mine"': '"out"',
    "16384": "48",
}
HARDLY_TIMED = {"NUM_TIMED_RUNS": 1, "NUM_TIMED_TOKENS": 2}
CHEAP = ("drop", "scan")  # commands that are run, not only parsed


def blocks(page, language):
    """The code of a page in one language, block by block."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", PAGES[page].read_text(encoding="utf-8"), re.DOTALL | re.M)
    return [textwrap.dedent(block) for _, block in found]


def commands(page):
    """The words of each `trim-trainer` on a page, whatever launches it."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^trim-trainer|-m trim_trainer\.cli) (.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def replaced(text):
    """With the names that are here."""
    for name, instead in REPLACED.items():
        text = text.replace(name, instead)
    return text


def run_python(page):
    """Run all of a page's Python, one block after the other, in the working directory; return what it defines."""
    torch.set_num_threads(1)
    names = {}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(replaced(block), f"{page}, block {number}", "exec"), names)  # noqa: S102
    return names


@pytest.fixture(scope="module", autouse=True)
def fast_timing():
    """No page says how fast a tiny model is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, number in HARDLY_TIMED.items():
            patch.setattr(speed, name, number)
        yield


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the models and the data that pages name, and what the first page leaves there."""
    folder = tmp_path_factory.mktemp("pages")
    for name, depth in DEPTHS.items():
        make_model(num_layers=depth).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    for split, (number, first) in {"train": (66, 0), "validation": (24, 200), "test": (12, 300)}.items():
        Dataset.from_list(make_examples(number, first)).to_json(folder / f"{split}.jsonl")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    with contextlib.chdir(folder):
        run_python(FIRST)
    return folder


@pytest.fixture
def in_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    exports.let_cards_know(monkeypatch)
    monkeypatch.setitem(TARGETS, "openvino", exports.make_target())


def test_the_first_page_leaves_a_standard_checkpoint(in_workplace):
    assert AutoModelForCausalLM.from_pretrained("out").config.num_hidden_layers == 4


def test_the_script_of_the_front_page_is_that_of_the_first():
    assert blocks(HOME, "python") == blocks(FIRST, "python")[:1]


@pytest.mark.parametrize(
    "page", sorted(page for page in PAGES if page not in RUN_ELSEWHERE and blocks(page, "python"))
)
def test_python_runs(page, in_workplace):
    run_python(page)


def _run_on_hub(queue, folder, connection):
    """Run the Python of the page of the Hub in a process that knows no other Hub than that of the tests."""
    connect(*connection)
    vars(speed).update(HARDLY_TIMED)
    os.chdir(folder)
    names = run_python(HUB)
    queue.put(names["model"].config.num_hidden_layers)


def test_python_of_the_page_of_the_hub_runs_against_a_hub(workplace, tmp_path):
    queue = CONTEXT.Queue()
    with HubServer() as server:
        arguments = (queue, workplace, (server.endpoint, WRITE_TOKEN, tmp_path, False))
        process = CONTEXT.Process(target=_run_on_hub, args=arguments)
        process.start()
        process.join(120)
        assert process.exitcode == 0
        assert queue.get(timeout=1) == 5
        assert {"main", "depth-5"} == set(server.repo("me/icd10-family").branches)


class Parsed(Exception):
    """A command's parsers took all of its words."""


@pytest.fixture
def only_parse(monkeypatch):
    """Commands end where they have parsed their words."""

    def stop_behind(owner, name):
        parse = getattr(owner, name)

        def stopping(*args, **kwargs):
            parse(*args, **kwargs)
            raise Parsed

        monkeypatch.setattr(owner, name, stopping)

    stop_behind(Parser, "parse_args")
    stop_behind(recipe, "parse_recipe")


COMMANDS = [(page, words) for page in sorted(PAGES) for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}-{words[0]}" for page, words in COMMANDS])
def test_commands_parse(page, words, only_parse, in_workplace, capsys):
    with pytest.raises(Parsed):
        status = main(words)
        pytest.fail(f"{' '.join(words)} ended with {status}: {capsys.readouterr().err}")


def test_a_command_that_does_not_parse_is_noticed(only_parse, in_workplace):
    with pytest.raises(SystemExit):
        main(["drop", "model", "--layer", "3", "--outputs", "out"])
    assert main(["train", "--config", "recipes/quickstart.yaml", "--importence", "tail"]) == 2


@pytest.mark.parametrize(("page", "words"), [each for each in COMMANDS if each[1][0] in CHEAP])
def test_cheap_commands_run(page, words, in_workplace, capsys):
    assert main([replaced(word) for word in words]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", sorted(page for page in PAGES if blocks(page, "yaml") and page != CARD))
def test_keys_of_recipes_are_known(page, tmp_path):
    for block in blocks(page, "yaml"):
        (tmp_path / "recipe.yaml").write_text(block, encoding="utf-8")
        read_task(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("page", sorted(PAGES))
def test_what_a_page_names_is_there(page):
    """Files outside of the package, and targets of make; the site is built with its links checked by `make docs`."""
    text = PAGES[page].read_text(encoding="utf-8")
    for name in re.findall(r"\b((?:benchmarks|recipes|docs)/[\w./-]*\w\.\w+)", text):
        assert (ROOT / name).is_file(), name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make\s([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_public_name_is_on_the_page_of_the_api():
    named = re.findall(r"^::: trim_trainer\.(\w+)$", PAGES["api.md"].read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(trim_trainer.__all__)


def test_every_page_is_in_the_menu():
    menu = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"[\w/-]+\.md", menu)) == sorted(PAGES)
