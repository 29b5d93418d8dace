"""The pictures of a run show what was measured, and nothing else."""

from dataclasses import replace
from io import BytesIO

import numpy as np
from histories import make_history
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from trim_trainer.records.plots import PALE, plot_importance


def drawn(history):
    file = BytesIO()
    plot_importance(history, file)
    file.seek(0)
    return imread(file)[..., :3]


def with_first_layer(history, score, count):
    """The history with another score of layer 0, which comes from `count` examples."""
    rounds = tuple(
        replace(each, scores=(score, *each.scores[1:]), num_examples=(count, *[12] * (len(each.scores) - 1)))
        for each in history.scored.rounds
    )
    return replace(history, rounds=rounds)


def test_a_layer_that_was_not_scored_is_grey_whatever_stands_in_its_place():
    history = make_history()
    one, other = (drawn(with_first_layer(history, score, count=0)) for score in (0.0, 50.0))
    assert np.array_equal(one, other)
    is_pale = (np.abs(one - np.array(to_rgb(PALE))) < 0.01).all(-1)
    assert is_pale.sum() > 1000
    assert (
        not (np.abs(drawn(with_first_layer(history, 0.2, count=12)) - np.array(to_rgb(PALE))) < 0.01).all(-1).sum()
        > 1000
    )
