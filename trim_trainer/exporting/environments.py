"""Environments of other libraries, beside this one: made once, kept in a cache, entered by their interpreter."""

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from ..data.quickstart import cache_dir

logger = logging.getLogger(__name__)

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_ERROR = re.compile(r"[\w.]*(Error|Exception|Exit|Interrupt)\b")  # begins the last line of a traceback
MAX_REASON = 600  # characters
_COMPLETE = "complete"  # a file in an environment that was made to its end


class ExportError(RuntimeError):
    """Nothing was exported; the message says why, and what helps."""


@dataclass(frozen=True)
class Environment:
    """Packages that cannot stand beside those that train.

    Attributes:
        name: Of the target.
        packages: What is installed, pinned, with what it needs.
        alone: What is installed without what it says it needs.
        check: A statement that only runs where all is there.
        modules: Where all of these are installed beside this package, as by an extra, its own Python will do; (): never.
    """

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...]
    check: str
    modules: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is kept: in the cache, one for each set of packages and version of Python and torch."""
        what = json.dumps([self.packages, self.alone, sys.version_info[:2], torch.__version__])
        return cache_dir() / "environments" / f"{self.name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    @property
    def is_made(self) -> bool:
        """Whether it was made to its end."""
        return (self.folder / _COMPLETE).is_file()

    @property
    def interpreter(self) -> Path:
        """Its Python."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def by_hand(self) -> str:
        """The command that makes such an environment of the user's own, to be named with `--python`."""
        return (
            f"python -m venv ENV && ENV/bin/pip install {' '.join(f'{name!r}' for name in self.packages)}"
            + "".join(f" && ENV/bin/pip install --no-deps {name!r}" for name in self.alone)
        )


def find_interpreter(environment: Environment, named: str | None = None) -> Path:
    """Return the Python of an environment, which is made if it is not there yet.

    Args:
        environment: What has to be installed.
        named: A Python of the user's, which has it already; None: one in the cache.

    Raises:
        ExportError: what is named cannot do it, or none could be made.
    """
    if named is not None:
        found = shutil.which(named)
        if found is None:
            raise ExportError(f"`--python` is {named!r}, expected a Python interpreter that can be run.")
        if (why := _why_not(Path(found), environment)) is not None:
            raise ExportError(f"`--python` is {named!r}, which cannot export to {environment.name}: {why}")
        return Path(found)
    if environment.modules and all(map(importlib.util.find_spec, environment.modules)):
        return Path(sys.executable)
    environment.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{environment.folder}.lock"):
        if not environment.is_made:
            _make(environment)
    return environment.interpreter


def _make(environment: Environment) -> None:
    shutil.rmtree(environment.folder, ignore_errors=True)
    logger.info("Making an environment for %s in %s, once.", environment.name, environment.folder)
    pip = [str(environment.interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(environment.folder)], environment)
    if _needs_cpu_index(pip):
        _run([*pip, "--index-url", CPU_INDEX, _torch()], environment)
    _run([*pip, _torch(), *environment.packages], environment)
    for name in environment.alone:
        _run([*pip, "--no-deps", name], environment)
    if (why := _why_not(environment.interpreter, environment)) is not None:
        raise _failed(environment, why)
    (environment.folder / _COMPLETE).touch()


def _torch() -> str:
    return f"torch=={torch.__version__.partition('+')[0]}"


def _needs_cpu_index(pip: list[str]) -> bool:
    """Whether pip would fetch gigabytes for a GPU that is not there: asked of pip itself."""
    if torch.accelerator.is_available() or sys.platform == "darwin":
        return False
    asked = [*pip, "--dry-run", "--no-deps", "--report", "-", _torch()]
    said = subprocess.run(asked, capture_output=True, text=True, env=alone())
    try:
        (found,) = json.loads(said.stdout)["install"]
    except (ValueError, KeyError):
        return True
    return "+cpu" not in found["metadata"]["version"]


def _run(step: list[str], environment: Environment) -> None:
    if (why := why_failed(step)) is not None:
        raise _failed(environment, why)


def _failed(environment: Environment, why: str) -> ExportError:
    return ExportError(
        f"The environment for {environment.name} could not be made ({why}). Make one by hand and name it with --python: "
        f"{environment.by_hand}"
    )


def _why_not(interpreter: Path, environment: Environment) -> str | None:
    return why_failed([interpreter, "-I", "-c", environment.check])


def why_failed(step: list) -> str | None:
    """Run a program, one that sees none of this one's packages, and say why it failed; None: it did not."""
    done = subprocess.run(list(map(str, step)), capture_output=True, text=True, env=alone())
    return None if done.returncode == 0 else reason(done.stderr) or f"exit status {done.returncode}"


def alone() -> dict[str, str]:
    """The environment variables of a process that shall see nothing of this one's packages, and no Hub."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"HF_HUB_OFFLINE": "1"}


def reason(said: str) -> str:
    """Why a program ended, from what it said: the error that Python named last, else the last line."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    named = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    shown = lines[named[-1] :] if named else lines[-1:]
    return " ".join(" ".join(line.strip() for line in shown).split())[:MAX_REASON]
