"""A run of six layers that dropped two, as its history."""

from dataclasses import replace

from trim_trainer.records.history import Round, TrimHistory
from trim_trainer.records.measurement import EVALUATION, Measurement, Quality


def make_history():
    history = TrimHistory(6, 4, "sensitivity", "accuracy", 12)
    first = Round(0, (0, 1, 2, 3, 4, 5), (0.5, 0.1, 0.2, 0.0, 0.3, 0.4), 0.9, 1.0, trained_layers=(0, 5))
    second = Round(10, first.layers, first.scores, 0.9, 1.0, (1.0,) * 6, (3,), 0.85, 20.0, (0, 5))
    third = Round(20, (0, 1, 2, 4, 5), (0.5, 0.1, 0.2, 0.3, 0.4), 0.88, 1.0, None, (1,), 0.8, 22.0, (0, 5))
    for entry in (first, second, third):
        history = history.add(entry)
    quality = {EVALUATION: Quality(num_examples=24, num_tokens=30, loss=1.5, accuracy=0.4)}
    return replace(history, untrimmed=Measurement(6, 1000, quality=quality))
