"""What a model card says beside the history, as plain data."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CardFacts:
    """What the card says beside the history. None means not known, and prints nothing."""

    model_name: str
    num_train_examples: int | None
    recipe: dict[str, Any]
    versions: dict[str, str]
    tags: tuple[str, ...] = ()
    base_model: str | None = None
    license: str | list[str] | None = None
    license_name: str | None = None  # and where it stands, of one that the Hub has no name for
    license_link: str | None = None
    dataset_name: str | None = None
    paper: str | None = None  # where the criterion comes from
    caveats: tuple[str, ...] = ()  # runtimes that would compute something else
    oldest_transformers: str | None = None  # from which version on the checkpoint loads right
    dtype: str | None = None  # in which most of the weights are stored; None: not known, or they are quantized
    sees_images: bool = False  # whether it is an image-text model, which loads with another class and a processor
    weights: str | None = None  # digest of the tensors that this speaks of, see `hub.weights`

    @property
    def made_with(self) -> str | None:
        """Major and minor version of Transformers that wrote the checkpoint."""
        version = self.versions.get("transformers")
        return version and ".".join(version.split(".")[:2])

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> "CardFacts":
        """Read the facts as JSON knows them."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})
