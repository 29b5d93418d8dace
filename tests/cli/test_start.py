"""How commands start, and what they say of themselves."""

import subprocess
import sys
from dataclasses import fields

import pytest
from trl import SFTConfig

from trim_trainer import TrimConfig
from trim_trainer.cli.help import GROUPS
from trim_trainer.cli.main import COMMANDS, main

WATCHED = "import sys; from trim_trainer.cli.main import main\ntry: status = main({arguments})\nexcept SystemExit as end: status = end.code\nprint(status, *sorted({{'torch', 'trl', 'matplotlib'}} & sys.modules.keys()), file=sys.stderr)"


def loaded(*arguments):
    """Exit status of a command in a fresh process, and which of the large libraries it has loaded."""
    code = WATCHED.format(arguments=list(arguments))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    status, *libraries = said.stderr.splitlines()[-1].split()
    return status, libraries, said.stdout + said.stderr


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in COMMANDS if name != "train")])
def test_help_loads_no_torch(arguments):
    status, libraries, said = loaded(*arguments)
    assert (status, libraries) == ("0", []) and "usage: trim-trainer" in said


def test_publish_loads_no_torch(tmp_path):
    """It looks at the folder, stages, and refuses one that holds no history."""
    status, libraries, said = loaded("publish", str(tmp_path), "--repo-id", "me/model")
    assert (status, libraries) == ("2", []) and "holds no trim_history.json" in said


def test_the_help_of_train_is_short_and_begins_with_what_is_ours(capsys):
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["train", "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert "--target_layers" in short and "--adam_beta1" not in short and "example:" in short
    assert "--target_layers" in whole and "--adam_beta1" in whole
    assert len(short.splitlines()) < len(whole.splitlines()) / 3


def test_every_field_of_ours_is_in_one_group():
    ours = {field.name for field in fields(TrimConfig)} - {field.name for field in fields(SFTConfig)}
    shown = [name for names in GROUPS.values() for name in names]
    assert ours <= set(shown) and len(set(shown)) == len(shown)


@pytest.mark.parametrize("spelling", ["--repo-id", "--repo_id"])
def test_both_spellings_are_taken(spelling, tmp_path, capsys):
    for words in ([spelling, "me/model"], [f"{spelling}=me/model"]):
        assert main(["publish", str(tmp_path), *words, "--commit_message", "a-b_c"]) == 2
        assert "holds no trim_history.json" in capsys.readouterr().err
