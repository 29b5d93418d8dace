"""An exported model in a process of its own environment, and what is asked of it."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .environments import ExportError, alone, reason, why_failed

RUNNER = Path(__file__).parent / "runners" / "hold.py"


def run_step(step: list, what: str) -> None:
    """Run a program of another environment.

    Args:
        step: Its words.
        what: It could not do, in words, for the error.

    Raises:
        ExportError: it failed.
    """
    if (why := why_failed(step)) is not None:
        raise ExportError(f"{what}: {why}")


class Session:
    """A model that is held in another process until the `with` ends; see `runners/hold.py`.

    Args:
        interpreter: Python of the environment.
        runtime: A name in `RUNTIMES` there.
        folder: Of the model.
        how: `"exact"`: all is computed in single precision; others see there.
        runner: Program that holds it.
    """

    def __init__(self, interpreter: Path, runtime: str, folder: Path, how: str = "usual", runner: Path = RUNNER):
        self._step = [interpreter, "-I", runner, runtime, folder, how]
        self._name = runtime
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process: subprocess.Popen | None = None
        self.load_seconds, self.versions = 0.0, {}

    def __enter__(self) -> "Session":
        self._process = subprocess.Popen(
            list(map(str, self._step)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            env=alone(),
        )  # fmt: skip
        try:
            loaded = self._answer()
        except ExportError:
            self._end()
            raise
        self.load_seconds, self.versions = loaded["load_seconds"], loaded["versions"]
        return self

    def __exit__(self, *error) -> None:
        self._end()

    def ask(self, do: str, **request) -> Any:
        """Ask something, and return the answer, see `runners/hold.py`.

        Raises:
            ExportError: the process failed.
        """
        try:
            self._process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and says why
        return next(iter(self._answer().values()))

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            raise ExportError(f"{self._name} cannot run what was exported: {reason(self._said.read())}")
        return json.loads(line)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()
