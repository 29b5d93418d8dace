"""What trimming is compared with: the same data, steps and seed, another way to fewer layers, one row each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FULL = "full"  # the method that others are compared with
RECIPE = "recipe"  # the evaluation set of the recipe itself, among those of a result


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        title: What tables and plots call it.
        criterion: By which layers are dropped, a name in `CRITERIA`; None: the recipe's own.
        drops: When layers are dropped: `"never"`, `"before"` training all at once, or `"while"` it trains, as the recipe
            says.
        takes_seams: Halves of neighbouring layers may go too, whatever the recipe's `trim_unit`.
        is_usual: Whether it is among those that are compared where none are named.
        compensates: Layers in front of dropped ones take over what they added, if the recipe sets `compensation_size`.
        num_last_trained: Train only the head and so many of the last layers; None: what the recipe says.
        trains: Whether anything trains; if not, there is one cell for all seeds and rates.
        paper: Where it comes from.
    """

    title: str
    drops: Literal["never", "before", "while"] = "before"
    criterion: str | None = None
    compensates: bool = False
    takes_seams: bool = False
    is_usual: bool = True
    num_last_trained: int | None = None
    trains: bool = True
    paper: str | None = None


METHODS = {
    "untrained": Method("untrained", drops="never", trains=False),
    "full": Method("full depth", drops="never"),
    "progressive": Method(
        "progressive", drops="while", compensates=True, paper="https://huggingface.co/papers/2412.11242"
    ),
    "progressive_sublayers": Method(
        "progressive, sublayers", drops="while", compensates=True, takes_seams=True, is_usual=False,
        paper="https://huggingface.co/papers/2412.11242",
    ),
    "progressive_tail": Method("progressive, last layers", drops="while", criterion="tail", compensates=True),
    "one_shot": Method("one-shot, same criterion", compensates=True),
    "block_influence": Method(
        "one-shot, block influence", criterion="block_influence", paper="https://huggingface.co/papers/2403.03853"
    ),
    "tail": Method("one-shot, last layers", criterion="tail", paper="https://huggingface.co/papers/2411.15558"),
    "tail_head": Method(
        "one-shot, last layers; trains head + last 3", criterion="tail", num_last_trained=3,
        paper="https://huggingface.co/papers/2411.15558",
    ),
    "tail_compensated": Method(
        "one-shot, last layers, compensated", criterion="tail", compensates=True,
        paper="https://huggingface.co/papers/2505.02819",
    ),
    "random": Method("one-shot, random", criterion="random"),
}  # fmt: skip


def choose_methods(asked: Iterable[str] | None, importance: str, compensation_size: int | None) -> tuple[str, ...]:
    """Names of the methods that were asked for; None: all that differ.

    Raises:
        ValueError: one of them compensates, and the recipe says nothing to do it on.
    """
    if asked is None:
        return distinct_methods(
            importance, bool(compensation_size)
        )  # None: the layers of the model may not be able to
    if "tail_compensated" in asked and compensation_size == 0:
        raise ValueError(
            "`--methods` contains tail_compensated, but `compensation_size` is 0. Set it, such as `--compensation_size 200`, "
            "or leave the method out: it would be tail again."
        )
    return tuple(asked)


def distinct_methods(importance: str, compensates: bool = False) -> tuple[str, ...]:
    """Names of all methods but those that a recipe with this criterion makes the same as another one.

    Without compensation none compensates. With it, a control that drops before training and does not is one of its own,
    even by the recipe's criterion.
    """
    names, seen = [], set()
    for name, method in METHODS.items():
        if not method.is_usual:
            continue
        criterion = method.criterion or importance
        does_compensate = method.compensates and compensates
        what = (method.drops, criterion, does_compensate, method.num_last_trained, method.trains)
        if what not in seen:
            names.append(name)
            seen.add(what)
    return tuple(names)
