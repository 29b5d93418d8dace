"""Settings that break a rule are refused in words."""

import pytest

from trim_trainer import TrimConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_layers": 3, "target_ratio": 0.5}, "`target_layers` is 3 and `target_ratio` is 0.5: set exactly one"),
        ({"target_layers": 0}, "`target_layers` is 0"),
        ({"target_ratio": 1.0}, "`target_ratio` is 1.0.*write 0.4"),
        (
            {"importance": "magic"},
            "`importance` is 'magic', expected one of: activation_norm, angular, block_influence, late_sensitivity, random, sens",
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
