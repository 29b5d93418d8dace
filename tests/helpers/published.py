"""Rows of the data sets that the recipes name, with exactly their published features, and how their files lie on the Hub."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from datasets import ClassLabel, Dataset, Features, List, Value
from hub import Repo
from hub.git_objects import Blob
from tiny import make_examples

TEXT = Value("string")
LETTERS = ["a", "b", "c", "d"]


@dataclass(frozen=True)
class Published:
    """A data set: a row of it, its features, and `make`, which makes such a row of one of the tests' examples.

    `hidden` is what rows of the test split have, where its answers are not published.
    """

    row: dict
    features: Features
    make: Callable[[dict], dict] | None = None
    hidden: Mapping = field(default_factory=dict)
    config: str = "default"
    splits: tuple[str, ...] = ("train", "validation", "test")

    def rows(self, split: str, number: int) -> Dataset:
        """Rows of a split that no other split has."""
        first = 100 * self.splits.index(split)
        hidden = self.hidden if split == "test" else {}
        rows = [self.make(example) | hidden for example in make_examples(number, first)]
        return Dataset.from_list(rows, features=self.features)

    def repo(self, name: str, number: int = 64) -> Repo:
        """The repository as the Hub has it: a Parquet file for each split, and a card that says where they are."""
        folder = "data" if self.config == "default" else self.config
        files, entries = {}, []
        for split in self.splits:
            content = io.BytesIO()
            self.rows(split, number).to_parquet(content)
            files[f"{folder}/{split}-00000-of-00001.parquet"] = Blob(content.getvalue())
            entries.append(f"  - split: {split}\n    path: {folder}/{split}-*\n")
        card = f"---\nconfigs:\n- config_name: {self.config}\n  data_files:\n{''.join(entries)}---\n# A data set\n"
        repo = Repo("dataset", name)
        repo.commit("main", files | {"README.md": Blob(card.encode())}, "me", "Upload")
        return repo


def _question(example: dict) -> dict:
    options = [choice.strip() for choice in example["choices"]] + ["yes"]
    texts = {"question": example["prompt"]} | {
        f"op{letter}": text for letter, text in zip(LETTERS, options, strict=True)
    }
    return MEDMCQA.row | texts | {"cop": example["answer"]}


def _holding(example: dict) -> dict:
    endings = [choice.strip() for choice in example["choices"]] + ["yes", "no"]
    return {"context": f"{example['prompt']} <HOLDING>", "endings": endings, "label": example["answer"]}


MEDMCQA = Published(
    {
        "id": "45258d3d-b974-44dd-a161-c3fccbdadd88", "question": "Which vitamin is supplied from only animal source:",
        "opa": "Vitamin C", "opb": "Vitamin B7", "opc": "Vitamin B12", "opd": "Vitamin D", "cop": 2,
        "choice_type": "single", "exp": None, "subject_name": "Biochemistry", "topic_name": None,
    },
    Features(
        {name: TEXT for name in ("id", "question", "opa", "opb", "opc", "opd")}
        | {"cop": ClassLabel(names=LETTERS)}
        | {name: TEXT for name in ("choice_type", "exp", "subject_name", "topic_name")}
    ),
    _question,
    hidden={"cop": -1},
)  # fmt: skip
CASE_HOLD = Published(
    {
        "context": "The court agreed. See Roe, 1 U.S. at 2 (<HOLDING>).",
        "endings": [f"holding {k}" for k in range(5)], "label": 3,
    },
    Features({"context": TEXT, "endings": List(TEXT), "label": ClassLabel(names=["0", "1", "2", "3", "4"])}),
    _holding,
    config="case_hold",
)  # fmt: skip
PHRASEBANK = Published(
    {"sentence": "Operating profit rose to EUR 13.1 mn .", "label": 2},
    Features({"sentence": TEXT, "label": ClassLabel(names=["negative", "neutral", "positive"])}),
    lambda example: {"sentence": example["prompt"], "label": example["answer"]},
)
# In the recipes: the name of each on the Hub.
NAMES = {
    "medical": ("openlifescienceai/medmcqa", MEDMCQA),
    "legal": ("coastalcph/lex_glue", CASE_HOLD),
    "finance": ("atrost/financial_phrasebank", PHRASEBANK),
}
