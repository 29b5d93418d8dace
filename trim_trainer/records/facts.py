"""What a model card says beside the history, as plain data."""

from dataclasses import asdict, dataclass
from typing import Any

from .history import TrimHistory


@dataclass(frozen=True)
class CardFacts:
    """What the card says beside the history. None means not known, and prints nothing."""

    model_name: str
    num_train_examples: int | None
    recipe: dict[str, Any]
    versions: dict[str, str]
    tags: tuple[str, ...] = ()
    base_model: str | None = None
    license: str | None = None
    dataset_name: str | None = None
    paper: str | None = None  # where the criterion comes from
    caveats: tuple[str, ...] = ()  # runtimes that would compute something else

    @classmethod
    def of(cls, history: TrimHistory) -> "CardFacts":
        """The facts that were saved with a history."""
        return cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in history.card.items()}
        )

    def to_plain(self) -> dict[str, Any]:
        """The facts as JSON knows them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
