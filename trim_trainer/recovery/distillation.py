"""Learning from a teacher of full depth while layers drop: its distribution at each scored position, computed once."""

from pathlib import Path

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..checkpoints.loading import Source
from ..data.examples import IGNORED
from ..scoring.scored_positions import logits_of, scored_positions_only

TARGETS_NAME = "distillation.pt"  # beside a checkpoint
NUM_KEPT = 64  # most likely tokens of a position; all others together are one more outcome


class Teacher:
    """A model whose answers are learned beside the labels (Hinton et al., 2015, arXiv 1503.02531).

    Its distribution at a scored position is kept as the `NUM_KEPT` most likely tokens and one outcome for all others, once
    per row of a batch: later epochs do not run it again.

    Args:
        model: Causal LM with the vocabulary of the student.
        temperature: By which the logits of both are divided.
        ids: The teacher's own ids of the student's tokens, where the student has fewer: the distribution is that over these.
    """

    def __init__(self, model: PreTrainedModel, temperature: float, ids: tuple[int, ...] | None = None):
        self.model = model.eval().requires_grad_(False)
        self.temperature = temperature
        self._ids = None if ids is None else torch.tensor(ids, device=model.device)
        # (input ids, labels) of a row, as bytes -> tokens (scored, kept) and log-probabilities (scored, kept + 1)
        self._targets: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def load(
        cls,
        name: str,
        temperature: float,
        student: PreTrainedModel,
        trust_remote_code: bool = False,
        ids: tuple[int, ...] | None = None,
    ) -> "Teacher":
        """Load a checkpoint as the teacher of `student`, on its device; `ids` as above, of the student's base model.

        Raises:
            ValueError: it has another vocabulary.
        """
        model = Source.of(name, trust_remote_code=trust_remote_code).load_model(student.dtype).to(student.device)
        sizes = [each.get_output_embeddings().weight.shape[0] for each in (model, student)]
        if ids is not None and sizes[0] > max(ids) and sizes[0] != sizes[1]:
            return cls(model, temperature, ids)
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"`distill_from` {name!r} has a vocabulary of {sizes[0]} tokens, the model one of {sizes[1]}: name a "
                "checkpoint of the same family, such as the model fine-tuned at full depth."
            )
        return cls(model, temperature)

    def divergence(self, student: PreTrainedModel, output: ModelOutput, inputs: dict) -> torch.Tensor:
        """Return the divergence of the student from the teacher, in nats summed over scored positions, times T².

        Args:
            student: Whose head is applied to `output`.
            output: Of its decoder, with `last_hidden_state` (1, scored, hidden) of the scored positions.
            inputs: The batch as the collator made it, with `labels`.
        """
        tokens, log_probs = self._targets_of(inputs)
        found = self._coarse(logits_of(student, student.base_model, output)[0], tokens)
        return kl_div(found, log_probs, reduction="sum", log_target=True) * self.temperature**2

    def _coarse(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (scored, kept + 1) of these tokens and of all others together."""
        every = log_softmax(logits.float() / self.temperature, -1)
        kept = every.gather(-1, tokens)
        others = every.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([kept, others], -1)

    def _targets_of(self, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        keys = [self._key(inputs, row) for row in range(len(inputs["input_ids"]))]
        missing = [row for row, key in enumerate(keys) if key not in self._targets]
        if missing:
            self._run(inputs, missing, keys)
        device = inputs["input_ids"].device
        found = zip(*(self._targets[key] for key in keys), strict=True)
        tokens, log_probs = (torch.cat(parts).to(device) for parts in found)
        return tokens.long(), log_probs

    @staticmethod
    def _key(inputs: dict, row: int) -> bytes:
        """What the teacher's answer depends on, whatever the padding."""
        ids, labels = inputs["input_ids"][row], inputs["labels"][row]
        if "attention_mask" in inputs:
            is_there = inputs["attention_mask"][row].bool()
            ids, labels = ids[is_there], labels[is_there]
        return torch.stack([ids, labels]).cpu().numpy().tobytes()

    @torch.no_grad()
    def _run(self, inputs: dict, rows: list[int], keys: list[bytes]) -> None:
        size = len(keys)
        part = {
            name: value[rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == size else value
            for name, value in inputs.items()
        }
        with scored_positions_only(self.model, part) as (selected, _):
            selected.pop("shift_labels")
            if self._ids is not None:
                selected["input_ids"] = self._ids[selected["input_ids"]]
            logits = self.model(**selected | {"use_cache": False}).logits[0]
            if self._ids is not None:
                logits = logits[:, self._ids]
        tokens = logits.topk(min(NUM_KEPT, logits.shape[-1] - 1)).indices
        log_probs = self._coarse(logits, tokens)
        counts = (part["labels"][:, 1:] != IGNORED).sum(1).tolist()
        parts = zip(tokens.int().cpu().split(counts), log_probs.cpu().split(counts), strict=True)
        for row, (row_tokens, row_log_probs) in zip(rows, parts, strict=True):
            self._targets[keys[row]] = (row_tokens.clone(), row_log_probs.clone())

    def save(self, directory: str | Path) -> None:
        """Write what was computed beside a checkpoint: a resumed run goes on with the same numbers."""
        torch.save(self._targets, Path(directory) / TARGETS_NAME)

    def resume(self, directory: str | Path) -> None:
        """Read what `save` wrote."""
        path = Path(directory) / TARGETS_NAME
        if path.is_file():
            self._targets = torch.load(path, map_location="cpu", weights_only=True)
