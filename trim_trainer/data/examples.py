"""An example as token ids: a prompt, and the completions that are scored behind it."""

from dataclasses import dataclass

IGNORED = -100  # label of a token that is not scored, as everywhere in Transformers


@dataclass(frozen=True)
class ScoredExample:
    """One prompt and the completions that are scored behind it.

    `choice_labels[k][t]` is `choice_ids[k][t]`, or -100 where the token does not count. A plain example has one choice.
    """

    prompt_ids: tuple[int, ...]  # at least one token
    choice_ids: tuple[tuple[int, ...], ...]
    choice_labels: tuple[tuple[int, ...], ...]
    answer: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all choices."""
        return len(self.prompt_ids) + sum(map(len, self.choice_ids))
