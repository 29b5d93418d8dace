"""An example as token ids: a prompt, and the completions that are scored behind it."""

from dataclasses import dataclass

IGNORED = -100  # label of a token that is not scored, as everywhere in Transformers


@dataclass(frozen=True)
class ScoredExample:
    """One prompt and the completions that are scored behind it.

    `choice_labels[k][t]` is `choice_ids[k][t]`, or -100 where the token does not count. A plain example has one choice.
    The first token of prompt and choice never counts: nothing predicts it.
    """

    prompt_ids: tuple[int, ...]  # what all choices share; none where texts were cut to their ends
    choice_ids: tuple[tuple[int, ...], ...]
    choice_labels: tuple[tuple[int, ...], ...]
    answer: int = 0
    prompt_labels: tuple[int, ...] = ()  # what counts of the prompt, with each choice; (): nothing

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all choices."""
        return len(self.prompt_ids) + sum(map(len, self.choice_ids))

    @property
    def num_scored(self) -> int:
        """Tokens that count of the prompt and the right choice."""
        return sum(label != IGNORED for label in self.prompt_labels) + len(self.counted(self.answer))

    def counted(self, choice: int) -> tuple[int, ...]:
        """The tokens of a choice that count."""
        return tuple(label for label in self.choice_labels[choice] if label != IGNORED)
