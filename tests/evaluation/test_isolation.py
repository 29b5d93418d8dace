"""A measurement in a process of its own ends with the process that asked for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from trim_trainer.cli.errors import WRONG, say_errors
from trim_trainer.evaluation.isolation import run_alone


def wait_forever(path):
    """Say who waits, in a file that is there at once and whole."""
    Path(f"{path}.new").write_text(str(os.getpid()))
    Path(f"{path}.new").rename(path)
    time.sleep(600)


def is_running(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(is_done, seconds=60):
    end = time.monotonic() + seconds
    while not is_done() and time.monotonic() < end:
        time.sleep(0.05)
    return is_done()


def test_a_killed_parent_takes_its_child_along(tmp_path):
    path = tmp_path / "pid"
    code = f"import test_isolation as t; t.run_alone(t.wait_forever, {str(path)!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    try:
        assert wait_until(path.exists)
        child = int(path.read_text())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not is_running(child))
    finally:
        parent.kill()
        parent.wait()


def test_a_result_comes_back():
    assert run_alone(os.path.basename, "a/b") == "b"


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_child_is_said_in_one_line(capsys):
    assert say_errors(lambda arguments: run_alone(kill_myself), []) == WRONG
    said = capsys.readouterr().err
    assert said.startswith("trim-trainer: The process that trains or measures was killed from outside")
    assert said.count("\n") == 1 and "memory runs out" in said and "abruptly" not in said


def test_next_to_an_accelerator_nothing_is_forked(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert run_alone(os.getppid) == os.getpid()  # the parent of a forked one is the server
