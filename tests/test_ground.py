"""History, schedule and configuration: plain data and arithmetic."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from trim_trainer import TrimConfig, TrimHistory
from trim_trainer.records.history import Round
from trim_trainer.records.measurement import EVALUATION, Measurement, Quality
from trim_trainer.training.schedule import plan_schedule, resolve_target


def test_import_loads_no_torch():
    code = "import sys, trim_trainer; dir(trim_trainer); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def make_history():
    history = TrimHistory(6, 4, "sensitivity", "accuracy", 12)
    first = Round(0, (0, 1, 2, 3, 4, 5), (0.5, 0.1, 0.2, 0.0, 0.3, 0.4), 0.9, 1.0, trained_layers=(0, 5))
    second = Round(10, first.layers, first.scores, 0.9, 1.0, (1.0,) * 6, (3,), 0.85, 20.0, (0, 5))
    third = Round(20, (0, 1, 2, 4, 5), (0.5, 0.1, 0.2, 0.3, 0.4), 0.88, 1.0, None, (1,), 0.8, 22.0, (0, 5))
    for entry in (first, second, third):
        history = history.add(entry)
    quality = {EVALUATION: Quality(num_examples=24, num_tokens=30, loss=1.5, accuracy=0.4)}
    return replace(history, untrimmed=Measurement(6, 1000, quality=quality))


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
    assert history.format_version == 2


def test_a_history_of_a_newer_format_is_refused(tmp_path):
    path = make_history().save(tmp_path)
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 99'))
    with pytest.raises(ValueError, match="`format_version`.*is 99.*Upgrade"):
        TrimHistory.load(tmp_path)


def test_targets():
    assert resolve_target(30, 20, None) == 20
    assert resolve_target(30, None, 0.5) == 15
    for layers in (30, 31, 0):
        with pytest.raises(ValueError, match=f"`target_layers` is {layers}.*between 1 and 29"):
            resolve_target(30, layers, None)
    with pytest.raises(ValueError, match="`target_ratio` is 0.01, which drops 0 of 30"):
        resolve_target(30, None, 0.01)


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({"total": 100}, ((6, 5), (12, 4), (18, 3))),  # automatic: the last 80 % heal
        ({"total": 100, "trim_delay": 0.2}, ((25, 5), (30, 4), (35, 3))),
        ({"total": 100, "trim_delay": 20}, ((25, 5), (30, 4), (35, 3))),
        ({"total": 4}, ((1, 5), (2, 4), (3, 3))),
        ({"total": 100, "trim_steps": 10}, ((10, 5), (20, 4), (30, 3))),
        ({"total": 101, "trim_steps": 0.1}, ((11, 5), (22, 4), (33, 3))),  # rounded up, as the Trainer does
        ({"total": 100, "trim_steps": 10, "trim_delay": 25}, ((30, 5), (40, 4), (50, 3))),
        ({"total": 101, "trim_steps": 10, "trim_delay": 0.25}, ((30, 5), (40, 4), (50, 3))),
        ({"total": 100, "trim_steps": 10, "layers_per_trim": 2}, ((10, 4), (20, 3))),
        ({"total": 100, "layers_per_trim": 2, "save_depths": [5, 6, 2]}, ((25, 5), (50, 3))),  # 5 is not passed over
        ({"total": 3, "strategy": "epoch"}, ((1, 5), (2, 4), (3, 3))),
        ({"total": 5, "strategy": "epoch", "trim_delay": 2}, ((2, 5), (3, 4), (4, 3))),
    ],
)
def test_schedules(options, points):
    schedule = plan_schedule(6, 3, **options)
    assert schedule.points == points
    position = points[0][0]
    step, epoch = (0, position) if schedule.strategy == "epoch" else (position, 0)
    assert schedule.depth_at(step, epoch) == points[0][1]
    assert schedule.depth_at(0, 0) == 6
    total = options["total"]
    lived = [schedule.depth_at(*((0, i) if schedule.strategy == "epoch" else (i, 0))) for i in range(total)]
    assert schedule.mean_depth(total) == pytest.approx(sum(lived) / total)


def test_a_run_that_is_too_short_is_refused_with_the_ways_out():
    with pytest.raises(ValueError) as error:
        plan_schedule(30, 20, total=3, strategy="epoch")
    for part in (
        "`target_layers` is 20",
        "3 epochs",
        "ends at 27 of 30",
        "`num_train_epochs`",
        "`layers_per_trim` to 4",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="room for 5 drop"):
        plan_schedule(30, 20, total=50, trim_steps=10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_layers": 3, "target_ratio": 0.5}, "`target_layers` is 3 and `target_ratio` is 0.5: set exactly one"),
        ({"target_layers": 0}, "`target_layers` is 0"),
        ({"target_ratio": 1.0}, "`target_ratio` is 1.0.*write 0.4"),
        (
            {"importance": "magic"},
            "`importance` is 'magic', expected one of: activation_norm, angular, block_influence, random, sens",
        ),
        ({"trim_strategy": "never"}, "`trim_strategy` is 'never'"),
        ({"trim_steps": 0}, "`trim_steps` is 0"),
        ({"trim_steps": 2.5}, "`trim_steps` is 2.5, expected whole steps"),
        ({"trim_steps": 5, "trim_strategy": "epoch"}, "`trim_steps` is 5, but `trim_strategy` is 'epoch'"),
        ({"layers_per_trim": 0}, "`layers_per_trim` is 0"),
        ({"calibration_size": 0}, "`calibration_size` is 0"),
        ({"scan_batch_tokens": 0}, "`scan_batch_tokens` is 0"),
        ({"racing_confidence": 0.5}, "`racing_confidence` is 0.5, expected in \\(0.5, 1\\)"),
        ({"calibration_metric": "f1"}, "`calibration_metric` is 'f1'"),
        ({"sparse_update_ratio": 0.0}, "`sparse_update_ratio` is 0.0"),
        ({"max_metric_drop": -1.0}, "`max_metric_drop` is -1.0"),
    ],
)
def test_wrong_settings_name_field_value_and_rule(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TrimConfig(output_dir=str(tmp_path), use_cpu=True, **fields)
