"""Examples of random tokens and lengths."""

import random

from trim_trainer.data.examples import ScoredExample


def draw_examples(number, seed=0):
    rng = random.Random(seed)

    def ids(low, high):
        return tuple(rng.randrange(3, 60) for _ in range(rng.randrange(low, high)))

    examples = []
    for _ in range(number):
        choices = tuple(ids(1, 5) for _ in range(4))
        examples.append(ScoredExample(ids(3, 12), choices, choices, rng.randrange(4)))
    return examples
