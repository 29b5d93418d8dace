"""The history of a run: plain data that survives its file."""

import json

import pytest
from histories import make_history

from trim_trainer import TrimHistory


def test_history_counts_in_the_numbers_of_the_untrimmed_model():
    history = make_history()
    assert (history.dropped, history.kept, history.depth) == ((3, 1), (0, 2, 4, 5), 4)
    assert history.drops[1].score_of(1) == 0.1
    assert history.trained_layers == (0, 5)


def test_history_survives_json(tmp_path):
    history = make_history()
    history.save(tmp_path)
    assert TrimHistory.load(tmp_path) == history


def test_a_history_of_the_first_format_is_read_as_the_same_history(tmp_path):
    """As version 0.1.0 wrote it, with measurements by name and a quality that stands among their facts."""
    old = {
        "num_layers": 6, "target_layers": 4, "importance": "tail", "calibration_metric": "loss", "calibration_size": 12,
        "compensation_size": 0, "stopped": None, "format_version": 1,
        "rounds": [
            {"step": 10, "layers": [0, 1, 2, 3, 4, 5], "scores": [0.0, -1.0, -2.0, -3.0, -4.0, -5.0], "metric": 0.9,
             "seconds": 1.0, "activation_norms": None, "dropped": [5, 4], "metric_after": 0.8, "tokens_per_second": 20.0,
             "trained_layers": None, "num_examples": None},
        ],
        "measurements": [
            {"name": "untrimmed", "depth": 6, "num_parameters": 600, "num_bytes": 2400, "num_examples": 24,
             "accuracy": 0.4, "majority_accuracy": 0.3, "macro_f1": None, "loss": 1.5, "tokens_per_second": 10.0,
             "device": "a CPU", "dtype": "float32", "precision": "float32"},
            {"name": "trimmed", "depth": 4, "num_parameters": 400, "num_bytes": 1600, "num_examples": None,
             "accuracy": None, "majority_accuracy": None, "macro_f1": None, "loss": None, "tokens_per_second": 14.0,
             "device": "a CPU", "dtype": "float32", "precision": None},
        ],
        "card": {"model_name": "tiny", "num_train_examples": 3, "recipe": {}, "versions": {}, "tags": ["trl"],
                 "base_model": None, "license": None, "dataset_name": None, "caveats": []},
    }  # fmt: skip
    (tmp_path / "trim_history.json").write_text(json.dumps(old))
    history = TrimHistory.load(tmp_path)
    assert (history.depth, history.dropped, history.drops[0].decode_tokens_per_second) == (4, (5, 4), 20.0)
    before, after = history.untrimmed, history.trimmed
    assert (before.depth, before.num_bytes, before.decode_tokens_per_second) == (6, 2400, 10.0)
    assert (before.evaluation.accuracy, before.evaluation.num_examples, before.evaluation.loss) == (0.4, 24, 1.5)
    assert (after.depth, after.evaluation, after.decode_tokens_per_second) == (4, None, 14.0)
    assert history.card.tags == ("trl",) and history.card.paper is None
    history.save(tmp_path)
    assert TrimHistory.load(tmp_path) == history
    assert history.format_version == 3


def test_a_history_of_a_newer_format_is_refused(tmp_path):
    path = make_history().save(tmp_path)
    path.write_text(path.read_text().replace('"format_version": 3', '"format_version": 99'))
    with pytest.raises(ValueError, match="`format_version`.*is 99.*Upgrade"):
        TrimHistory.load(tmp_path)
