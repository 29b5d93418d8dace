"""Which layers stay, or which halves of them, and what a config cannot say of them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace


class CannotSay(Exception):
    """No value of a config describes the layers that are left; the message is the reason."""


@dataclass(frozen=True, order=True)
class Seam:
    """The MLP half of a layer and the attention half of the next one, which go together and leave one layer of the two."""

    front: int

    @property
    def back(self) -> int:
        """Number of the layer that loses its attention half."""
        return self.front + 1

    def __str__(self) -> str:
        return f"{self.front}-{self.back}"


# What goes at a time: a layer by its number, or a seam.
Cut = int | Seam


@dataclass(frozen=True)
class Kept:
    """What stays of `depth` layers, in order: of each layer that is left, which one it was.

    Attributes:
        layers: Numbers of the layers that those left have their attention halves from.
        depth: Number of layers before.
        mlps: Numbers of the layers that they have their MLP halves from; None: from the same.
        mlp_parts: Names of the modules of an MLP half, where halves of two layers are joined.
    """

    layers: tuple[int, ...]
    depth: int
    mlps: tuple[int, ...] | None = None
    mlp_parts: tuple[str, ...] = ()

    @classmethod
    def without(cls, depth: int, cuts: Iterable[Cut], mlp_parts: tuple[str, ...] = ()) -> "Kept":
        """What stays when these go.

        Raises:
            ValueError: a half of a layer would go twice, or none would be left.
        """
        cuts = list(cuts)
        gone = [sublayer for cut in cuts for sublayer in sublayers(cut)]
        twice = sorted({sublayer // 2 for sublayer in gone if gone.count(sublayer) > 1})
        if twice:
            raise ValueError(f"A half of {name_layers(twice)} would go twice: a layer and its seams share halves.")
        if len(cuts) >= depth:
            raise ValueError(f"All {depth} layers would go, at least one has to stay.")
        attention, mlps = (tuple(i for i in range(depth) if 2 * i + half not in gone) for half in (0, 1))
        return cls(attention, depth) if attention == mlps else cls(attention, depth, mlps, mlp_parts)

    @property
    def is_joined(self) -> bool:
        """Whether a layer that is left has halves of two layers."""
        return self.mlps is not None

    @property
    def of_mlps(self) -> "Kept":
        """The same for what the MLP halves have: which layers these were in."""
        return self if self.mlps is None else replace(self, layers=self.mlps, mlps=None)

    @property
    def of_attention(self) -> "Kept":
        """The same for what the attention halves have."""
        return replace(self, mlps=None)

    @property
    def joined(self) -> dict[int, int]:
        """The layers that are left of two: the one with the attention half -> the one with the MLP half."""
        return {} if self.mlps is None else {a: m for a, m in zip(self.layers, self.mlps, strict=True) if a != m}

    @property
    def dropped(self) -> list[int]:
        """Numbers of the layers that are not there any more, or whose attention half is not."""
        return [layer for layer in range(self.depth) if layer not in self.layers]

    @property
    def touched(self) -> list[int]:
        """Numbers of the layers of which a half is gone at least."""
        whole = set(self.layers) & set(self.of_mlps.layers)
        return [layer for layer in range(self.depth) if layer not in whole]

    def __str__(self) -> str:
        """What went: `layer 3`, or `layers 3, 5`, or `layer 3 and with 4 | 5 joined`."""
        joined = [f"{front} | {back}" for front, back in self.joined.items()]
        between = {number for front, back in self.joined.items() for number in range(front, back + 1)}
        whole = [layer for layer in self.touched if layer not in between]
        said = [name_layers(whole)] if whole else []
        if joined:
            said.append(f"the seam{'s' if len(joined) > 1 else ''} of {', '.join(joined)}")
        return " and ".join(said)

    def renumber(self, numbers, first: int = 0) -> list[int]:
        """New numbers of those of the `numbers` that stay; both count from `first`."""
        new_number = {old + first: new + first for new, old in enumerate(self.layers)}
        return [new_number[number] for number in numbers if number in new_number]

    def select(self, values) -> list:
        """The entries of the layers that stay, each with its own value."""
        return [values[layer] for layer in self.layers]


def candidate_cuts(depth: int, with_seams: bool) -> list[Cut]:
    """What may go of so many layers: each of them; or they and the seams between them, from front to back."""
    if not with_seams:
        return list(range(depth))
    return [Seam(number // 2) if number % 2 else number // 2 for number in range(2 * depth - 1)]


def sublayers(cut: Cut) -> tuple[int, int]:
    """The two halves that a cut takes: 2·i is the attention half of layer i, 2·i + 1 its MLP half."""
    first = 2 * cut.front + 1 if isinstance(cut, Seam) else 2 * cut
    return first, first + 1


def cuts_of(sublayers: Collection[int]) -> list[Cut]:
    """The layers and seams that take these halves: each run of neighbouring ones is of even length."""
    cuts: list[Cut] = []
    ordered = sorted(sublayers)
    for first, second in zip(ordered[::2], ordered[1::2], strict=True):
        if second != first + 1:
            raise ValueError(f"The halves {ordered} cannot go: what is left would not be whole layers.")
        cuts.append(Seam(first // 2) if first % 2 else first // 2)
    return cuts


def name_layers(numbers) -> str:
    """`layer 3` or `layers 3, 5`."""
    numbers = list(numbers)
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
