"""Which layers stay, and what a config cannot say of them."""

from dataclasses import dataclass


class CannotSay(Exception):
    """No value of a config describes the layers that are left; the message is the reason."""


@dataclass(frozen=True)
class Kept:
    """Which of `depth` layers stay: their numbers, in order."""

    layers: tuple[int, ...]
    depth: int

    @property
    def dropped(self) -> list[int]:
        """Numbers of the other layers."""
        return [layer for layer in range(self.depth) if layer not in self.layers]

    def renumber(self, numbers, first: int = 0) -> list[int]:
        """New numbers of those of the `numbers` that stay; both count from `first`."""
        new_number = {old + first: new + first for new, old in enumerate(self.layers)}
        return [new_number[number] for number in numbers if number in new_number]

    def select(self, values) -> list:
        """The entries of the layers that stay, each with its own value."""
        return [values[layer] for layer in self.layers]


def name_layers(numbers) -> str:
    """`layer 3` or `layers 3, 5`."""
    numbers = list(numbers)
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
