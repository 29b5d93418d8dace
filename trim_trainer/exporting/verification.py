"""What was exported, next to the checkpoint in Transformers: the same tokens, and the same quality."""

from statistics import fmean

import torch
from transformers import PreTrainedModel

from ..data.examples import IGNORED, ScoredExample
from ..records.export_report import Agreement
from ..records.measurement import Quality
from ..scoring.quality import summarize
from .session import Session

NUM_TOKENS = 32  # of a greedy continuation
NUM_PROMPTS = 4  # of the task that are continued
TIE = 1e-3  # nats between the two likeliest tokens, below which rounding decides


@torch.no_grad()
def continue_greedily(
    model: PreTrainedModel, prompts: list[list[int]], num_tokens: int = NUM_TOKENS
) -> list[list[int]]:
    """Return the likeliest tokens behind each prompt, one after the other, as many as asked for; none ends a text."""
    made = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        for _ in range(num_tokens):
            following = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
        made.append(ids[0, len(prompt) :].tolist())
    return made


def compare_tokens(model: PreTrainedModel, session: Session, prompts: list[list[int]]) -> Agreement:
    """Compare greedy continuations of an exported model with those of the checkpoint, and its loss on the latter."""
    wanted = continue_greedily(model, prompts)
    found = session.ask("continue", prompts=prompts, num_tokens=NUM_TOKENS)
    num_equal, is_equal, before = 0, True, []
    for prompt, ours, theirs in zip(prompts, wanted, found, strict=True):
        log_probs = _log_probs(model, [*prompt, *ours])[len(prompt) - 1 : -1]
        before += log_probs[torch.arange(len(ours)), torch.tensor(ours)].tolist()
        same = next(
            (place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours)
        )
        num_equal += same
        if same < len(ours):
            is_equal &= (log_probs[same, ours[same]] - log_probs[same, theirs[same]]).item() < TIE
    texts = [([*prompt, *ours], len(prompt)) for prompt, ours in zip(prompts, wanted, strict=True)]
    after = [each for of_text in session.ask("score", texts=texts) for each in of_text]
    return Agreement(len(before), num_equal, is_equal, -fmean(before), -fmean(after))


@torch.no_grad()
def _log_probs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    inputs = torch.tensor([ids], device=model.device)
    return model(input_ids=inputs, use_cache=False).logits[0].float().log_softmax(-1).cpu()


def measure_exported(session: Session, examples: list[ScoredExample]) -> Quality:
    """Score every choice of every example, each as a text of its own."""
    texts, is_counted = [], []
    for example in examples:
        for ids, labels in zip(example.choice_ids, example.choice_labels, strict=True):
            labels = (*(example.prompt_labels or (IGNORED,) * len(example.prompt_ids)), *labels)
            first = next(place for place, label in enumerate(labels) if label != IGNORED)
            texts.append(([*example.prompt_ids, *ids], first))
            is_counted.append([label != IGNORED for label in labels[first:]])
    log_probs = session.ask("score", texts=texts)
    sums = [
        sum(value for value, counts in zip(of_text, counted, strict=True) if counts)
        for of_text, counted in zip(log_probs, is_counted, strict=True)
    ]
    return summarize(torch.tensor(sums), examples)
