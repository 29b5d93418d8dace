"""What a command says of what was typed wrong, lies wrong on the disk, or the network did: one line, and no traceback."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
import yaml
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer

from trim_trainer.causes import tell
from trim_trainer.cli.main import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of models, data and recipes, most of them wrong."""
    folder = tmp_path_factory.mktemp("files")
    model = folder / "model"
    make_model().save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    broken = {
        "cut": ("model.safetensors", (model / "model.safetensors").read_bytes()[:1000]),
        "no-json": ("config.json", b"{"),
        "other-shape": ("config.json", json.dumps(config | {"hidden_size": 64}).encode()),
        "unknown": ("config.json", json.dumps(config | {"model_type": "nonsense"}).encode()),
        "no-tokens": ("tokenizer.json", b"{"),
        "code": (
            "config.json",
            json.dumps(config | {"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}).encode(),
        ),
    }
    for name, (file, content) in broken.items():
        shutil.copytree(model, folder / name)
        (folder / name / file).write_bytes(content)
    Dataset.from_list(make_examples(24)).to_json(folder / "data.jsonl")
    settings = {
        "model_name_or_path": str(model), "dataset_name": str(folder / "data.jsonl"), "output_dir": str(folder / "out"),
        "target_layers": 4, "calibration_size": 4, "max_steps": 3, "bf16": False, "report_to": "none", "save_strategy": "no",
    }  # fmt: skip
    contents = {
        "recipe.yaml": yaml.safe_dump(settings).encode(), "empty.yaml": b"", "list.yaml": b"- a", "text.yaml": b"hello",
        "cut.yaml": b"a: [3", "binary.yaml": b"\xff\xfe\x00\x80", "empty.jsonl": b"", "data.xyz": b"?", "file": b"",
        "cut.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', "bad.parquet": b"nonsense" * 20,
        "template.yaml": yaml.safe_dump(settings | {
            "dataset_test_split": "train", "doc_to_text": "{{prompt", "doc_to_choice": "choices", "doc_to_target": "answer"
        }).encode(),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    return folder


@pytest.fixture
def said(files, capsys, monkeypatch):
    """Runs a command in the folder of files; returns its status and the one line on stderr that is not argparse's usage."""
    torch.set_num_threads(1)
    monkeypatch.chdir(files)

    def run(*words):
        capsys.readouterr()
        try:
            status = main(list(words))
        except SystemExit as end:  # argparse
            status = end.code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trim-trainer")]
        assert len(lines) == 1
        return status, lines[0]

    return run


TRAIN = ("train", "--config", "recipe.yaml")
SCAN = ("scan", "model", "--data", "data.jsonl")
DROP = ("drop", "model", "--output", "dropped", "--layers")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        # recipes
        (("train", "--config"), ("`--config` names no file", "--config recipe.yaml")),
        (("train", "--config="), ("`--config` names no file",)),
        (("train", "--config", "--target_layers", "3"), ("`--config` names no file",)),
        ((*TRAIN, "--config=other.yaml"), ("`--config` is there 2 times", "recipe.yaml, other.yaml")),
        (("train", "--config=recipe.yaml", "--target_layers", "9"), ("`target_layers` is 9", "6 layers")),
        (("train", "--config=nowhere.yaml"), ("'nowhere.yaml': No such file",)),
        (("train", "--config", "nothing"), ("'nothing': Is a directory",)),
        (("train", "--config", "empty.yaml"), ("'empty.yaml' contains nothing, expected a mapping",)),
        (("train", "--config", "list.yaml"), ("'list.yaml' contains list",)),
        (("train", "--config", "text.yaml"), ("'text.yaml' contains str",)),
        (("train", "--config", "cut.yaml"), ("'cut.yaml' is not YAML",)),
        (("train", "--config", "binary.yaml"), ("'binary.yaml' is not YAML", "invalid start byte")),
        (("compare", "--config"), ("`--config` names no file",)),
        (("compare", "--config", "nothing"), ("'nothing': Is a directory",)),
        (("evaluate", "model", "--task", "nothing"), ("'nothing': Is a directory",)),
        (("evaluate", "model", "--task", "binary.yaml"), ("'binary.yaml' is not YAML",)),
        # options
        ((*TRAIN, "--learning_rats", "3"), ("`--learning_rats` (did you mean `--learning_rate`?)",)),
        ((*TRAIN, "--learning-rats=3"), ("`--learning-rats` (did you mean `--learning-rate`?)",)),
        ((*TRAIN, "stray"), ("`stray`",)),
        ((*TRAIN, "--learning-rate", "abc"), ("--learning-rate: invalid float value: 'abc'",)),
        ((*TRAIN, "--dtype", "int7"), ("invalid choice: 'int7'", "bfloat16")),
        ((*TRAIN, "--importance", "nonsense"), ("`importance` is 'nonsense'", "sensitivity")),
        ((*TRAIN, "--max_length", "0"), ("`max_length` is 0",)),
        ((*SCAN, "--size", "abc"), ("--size: 'abc', expected a whole number of at least 1",)),
        ((*SCAN, "--size", "0"), ("--size: '0', expected a whole number of at least 1",)),
        ((*SCAN, "--batch_tokens", "-3"), ("--batch-tokens: '-3'",)),
        ((*SCAN, "--racing-confidence", "2"), ("--racing-confidence: '2', expected a number above 0.5 and below 1",)),
        ((*SCAN, "--criterion", "nonsense"), ("'nonsense'", "sensitivity")),
        ((*SCAN, "--split", "dev"), ("`split` is 'dev'", "['train']")),
        ((*SCAN, "--sizes", "3"), ("--sizes", "did you mean --size?")),
        ((*SCAN, "--dtype", "int7"), ("invalid choice: 'int7'",)),
        (("scan", "model"), ("--data",)),
        (("evaluate", "model", "--limit", "-1"), ("--limit: '-1', expected a whole number of at least 1",)),
        (("trian",), ("invalid choice: 'trian'", "'train'")),
        ((*DROP, "3-"), ("`layers` contains '3-'",)),
        ((*DROP, "99"), ("`layers` contains [99]", "0 to 5")),
        (("compare", "--config", "recipe.yaml", "--depths", "6"), ("`--depths` contains 6", "6 layers")),
        # where results go
        ((*TRAIN, "--output_dir", "file/sub"), ("`output_dir` is 'file/sub'", "is a file")),
        ((*SCAN, "--output", "file"), ("`--output` is 'file'", "is a file")),
        (("drop", "model", "--layers", "1", "--output", "file/sub"), ("`--output` is 'file/sub'", "is a file")),
        (("evaluate", "model", "--output", "nothing"), ("`--output` is 'nothing', which is a folder",)),
        (("compare", "--config", "recipe.yaml", "--output_dir", "file"), ("`--output_dir` is 'file'", "is a file")),
        # data
        (("scan", "model", "--data", "org/nowhere"), ("'org/nowhere'", "OfflineModeIsEnabled")),
        (("scan", "model", "--data", "empty.jsonl"), ("'empty.jsonl'", "no rows")),
        (("scan", "model", "--data", "cut.jsonl"), ("'cut.jsonl'", "JSON parse error")),
        (("scan", "model", "--data", "bad.parquet"), ("'bad.parquet'", "not a parquet file")),
        (("scan", "model", "--data", "data.xyz"), ("'data.xyz'", "expected one of: .json, .jsonl")),
        (("scan", "model", "--data", "nothing"), ("'nothing'", "any data files")),
        ((*TRAIN, "--dataset_name", "org/nowhere"), ("'org/nowhere'", "OfflineModeIsEnabled")),
        ((*TRAIN, "--dataset_name", "cut.jsonl"), ("'cut.jsonl'", "JSON parse error")),
        ((*TRAIN, "--datasets", "org/nowhere"), ("'org/nowhere'", "OfflineModeIsEnabled")),
        ((*TRAIN, "--dataset_name", "none"), ("Neither `dataset_name` nor `datasets` is set",)),
        (("train", "--config", "template.yaml"), ("no Jinja template",)),
        # models
        (("drop", "org/nowhere", "--layers", "1", "--output", "dropped"), ("`model` 'org/nowhere'", "traffic has been disabled")),
        ((*TRAIN, "--model_name_or_path", "nothing"), ("the folder 'nothing' has no config.json",)),
        ((*TRAIN, "--model_name_or_path", "cut"), ("'cut'", "invalid header length")),
        ((*TRAIN, "--model_name_or_path", "other-shape"), ("'other-shape'", "other shapes than its config.json")),
        (("scan", "cut", "--data", "data.jsonl"), ("'cut'", "invalid header length")),
        (("scan", "no-json", "--data", "data.jsonl"), ("'no-json/config.json' is cut short or damaged", "or save it again")),
        (("scan", "other-shape", "--data", "data.jsonl"), ("'other-shape'", "other shapes than its config.json")),
        (("scan", "unknown", "--data", "data.jsonl"), ("'unknown'", "`nonsense`")),
        (("scan", "no-tokens", "--data", "data.jsonl"), ("'no-tokens/tokenizer.json' is cut short or damaged", "enclosed in double quotes")),
        (("scan", "code", "--data", "data.jsonl"), ("'code'", "trust_remote_code=True")),
        (("publish", "nowhere", "--repo-id", "me/model"), ("'nowhere' holds no trim_history.json",)),
        (("publish", "file", "--repo-id", "me/model"), ("'file' holds no trim_history.json",)),
    ],
)  # fmt: skip
def test_a_command_says_what_was_wrong_in_one_line(said, words, parts):
    status, line = said(*words)
    assert status == 2
    assert all(part in line for part in parts), line


def test_a_process_of_its_own_hands_its_error_on(said):
    status, line = said("evaluate", "cut")
    assert status == 2 and "`model` 'cut' cannot be loaded: " in line and "invalid header length" in line


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(28, "No space left on device", "/out/model.safetensors"),
            2,
            "'/out/model.safetensors': No space left",
        ),
        (PermissionError(13, "Permission denied", "recipe.yaml"), 2, "'recipe.yaml': Permission denied"),
        (ModuleNotFoundError("lm-evaluation-harness is not installed."), 2, "lm-evaluation-harness is not installed."),
        (ConnectionError("two\nlines"), 2, "trim-trainer: two lines"),
    ],
)
def test_errors_of_the_system_end_any_command(said, monkeypatch, error, status, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("trim_trainer.evaluation.layers.report_layers", fail)
    ended, line = said(*SCAN)
    assert ended == status and words in line


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), AttributeError("x"), RuntimeError("x"), AssertionError("x")]
)
def test_a_mistake_of_ours_keeps_its_traceback(files, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("trim_trainer.evaluation.layers.report_layers", fail)
    monkeypatch.chdir(files)
    with pytest.raises(type(error)):
        main(list(SCAN))


def test_the_root_of_a_wrapped_error_is_told_once():
    root = ConnectionRefusedError(111, "Connection refused")
    wrapped = OSError("No such model")
    wrapped.__cause__ = ValueError("between")
    wrapped.__cause__.__cause__ = root
    assert tell(wrapped) == "No such model (Connection refused)."
    told = ValueError(tell(wrapped))
    told.__cause__ = wrapped
    assert tell(told) == "No such model (Connection refused)."


CALLS = """
import contextlib, io, json, sys
from trim_trainer.cli.main import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    print(json.dumps([status, said.getvalue()]))
"""


class Answer(http.server.BaseHTTPRequestHandler):
    """What the Hub says of a repository: gated ones are not open to us, and others are not there."""

    def do_GET(self):
        is_gated = "gated" in self.path
        self.send_response(403 if is_gated else 401)
        self.send_header("X-Error-Code", "GatedRepo" if is_gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_what_the_hub_refuses_is_said(files, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        calls = [
            [command, *rest]
            for name in ("org/nowhere", "org/gated")
            for command, *rest in (
                ("scan", name, "--data", "data.jsonl"), ("scan", "model", "--data", name), (*TRAIN, "--dataset_name", name),
                ("drop", name, "--layers", "1", "--output", "dropped"), (*TRAIN, "--model_name_or_path", name),
            )
        ]  # fmt: skip
        code = [sys.executable, "-c", CALLS, json.dumps(calls)]
        done = subprocess.run(code, capture_output=True, text=True, cwd=files, env=environment)
        server.shutdown()
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(calls), done.stderr
    for words, (status, line) in zip(calls, results, strict=True):
        name = "org/gated" if "org/gated" in words else "org/nowhere"
        assert status == 2 and line.count("\n") == 1 and line.startswith("trim-trainer: "), (words, line)
        assert f"'{name}' cannot be loaded: " in line and ("gated" in line.replace(name, "")) == (name == "org/gated")


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(files):
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from trim_trainer.cli.main import main; sys.exit(main(['train', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.slow
def test_an_interrupt_ends_a_command_without_a_traceback(files):
    code = (
        "import os, signal, threading; import trim_trainer.evaluation.layers as layers; from trim_trainer.cli.main import main\n"
        "def wait(*_, **__):\n    os.kill(os.getpid(), signal.SIGINT); threading.Event().wait(60)\n"
        f"layers.report_layers = wait; raise SystemExit(main({list(SCAN)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=files)
    assert done.returncode == 128 + signal.SIGINT and done.stderr.strip() == "trim-trainer: interrupted."
