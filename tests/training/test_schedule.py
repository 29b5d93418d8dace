"""When layers are dropped: arithmetic on steps and epochs."""

import pytest

from trim_trainer.training.schedule import plan_schedule, resolve_target


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
        ({"total": 100, "layers_per_trim": 2, "save_depths": [5, 6, 2]}, ((10, 5), (20, 3))),  # 5 is not passed over
        ({"total": 100, "layers_per_trim": 2, "save_depths": [5], "heals_depths": False}, ((25, 5), (50, 3))),
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


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({"total": 100, "start": 50}, ((55, 4), (60, 3))),  # a fifth of what is left, as in a run of its own
        ({"total": 100, "start": 10, "trim_delay": 0.2}, ((28, 4), (36, 3))),
        ({"total": 100, "start": 10, "trim_steps": 10}, ((20, 4), (30, 3))),
        ({"total": 100, "start": 14, "trim_steps": 10, "trim_delay": 35}, ((40, 4), (50, 3))),
        ({"total": 4, "start": 1.0, "strategy": "epoch"}, ((2, 4), (3, 3))),
        ({"total": 4, "start": 1.5, "strategy": "epoch"}, ((2, 4), (3, 3))),
        ({"total": 100, "start": 50, "num_layers": 3}, ()),  # there already
    ],
)
def test_what_is_left_of_a_run(options, points):
    schedule = plan_schedule(options.pop("num_layers", 5), 3, **options)
    assert schedule.points == points
    total, start = options["total"], options["start"]
    lived = [
        schedule.depth_at(*((0, i) if schedule.strategy == "epoch" else (i, 0))) for i in range(int(start), total)
    ]
    if start == int(start):
        assert schedule.mean_depth(total) == pytest.approx(sum(lived) / (total - start))


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
