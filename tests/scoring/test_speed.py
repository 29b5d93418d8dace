"""How many times as fast one model decodes as another, on machines that have other things to do."""

import random

import pytest

from trim_trainer.records.measurement import SpeedRatio
from trim_trainer.records.statistics import median_interval
from trim_trainer.scoring import speed

RATE = {"whole": 20.0, "trimmed": 27.4}  # tokens per second of an idle machine
RATIO = 1.37


class Machine:
    """A clock that goes as fast as the machine lets the models run.

    Args:
        slow_down: From the number of the run to how many times slower it is.
        noise: Of each run, a share of its time.
    """

    def __init__(self, monkeypatch, slow_down=lambda run: 1.0, noise=0.0, seed=0):
        self.now, self.order, self._random = 0.0, [], random.Random(seed)
        self._slow_down, self._noise = slow_down, noise
        monkeypatch.setattr(speed, "measure_tokens_per_second", self.measure)
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(speed, "MAX_SECONDS", 60.0)
        monkeypatch.setattr(speed, "NUM_TIMED_TOKENS", 16)

    def measure(self, model, num_runs):
        seconds = speed.NUM_TIMED_TOKENS / RATE[model] * self._slow_down(len(self.order))
        seconds *= 1 + self._random.uniform(-self._noise, self._noise)
        self.order.append(model)
        self.now += seconds
        return speed.NUM_TIMED_TOKENS / seconds


def time_them():
    return speed.measure_in_turns("whole", "trimmed")


@pytest.mark.parametrize(
    "wish", [{"num_return_sequences": 2, "do_sample": True}, {"stop_strings": ["x"]}, {"num_beams": 2}]
)
def test_decoding_is_timed_whatever_a_checkpoint_wishes(wish, tiny_model):
    model = tiny_model().train()
    for name, value in wish.items():
        setattr(model.generation_config, name, value)
    assert speed.measure_tokens_per_second(model, num_runs=1) > 0
    model.generate = None
    with pytest.raises(TypeError):
        speed.measure_tokens_per_second(model, num_runs=1)
    assert model.training


def test_pairs_of_runs_alternate_in_which_runs_first(monkeypatch):
    machine = Machine(monkeypatch)
    before, after, ratio = time_them()
    assert machine.order[:4] == ["whole", "trimmed", "trimmed", "whole"]
    assert len(machine.order) == 14 and ratio.num_pairs == 7
    assert (before, after) == pytest.approx((20.0, 27.4))
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((RATIO,) * 3)
    assert str(ratio) == "1.37× (1.37–1.37, 7 pairs in turns)"


@pytest.mark.parametrize("first", range(14))
@pytest.mark.parametrize("length", [1, 3, 6, 7, 8])
def test_a_stretch_in_which_the_machine_is_busy_does_not_move_the_ratio(first, length, monkeypatch):
    """Wherever it begins and ends: 2.3 times slower for some runs of the fourteen, once in the midst of a pair."""
    Machine(monkeypatch, lambda run: 2.3 if first <= run < first + length else 1.0, noise=0.01)
    before, after, ratio = time_them()
    assert ratio.is_telling
    assert ratio.ratio == pytest.approx(RATIO, abs=0.03) and ratio.low <= RATIO <= ratio.high
    assert after / before == pytest.approx(ratio.ratio)  # what the card prints agrees with itself


def test_a_machine_that_gets_slower_all_the_time_does_not_move_the_ratio(monkeypatch):
    Machine(monkeypatch, lambda run: 1.05**run)
    assert time_them()[2].ratio == pytest.approx(RATIO, abs=0.08)
    assert time_them()[2].low <= RATIO <= time_them()[2].high


@pytest.mark.parametrize("seed", range(20))
def test_noise_gives_no_ratio(seed, monkeypatch):
    """Each run is as slow as it likes, up to five times."""
    machine = Machine(monkeypatch, lambda run: chance.uniform(1, 5))
    chance = random.Random(seed)
    ratio = time_them()[2]
    assert not ratio.is_telling and "×" not in str(ratio) and "too busy to tell" in str(ratio)
    assert machine.now < speed.MAX_SECONDS + 60


def test_pairs_are_added_until_the_range_is_narrow(monkeypatch):
    Machine(monkeypatch, noise=0.1, seed=1)
    ratio = time_them()[2]
    assert ratio.num_pairs in speed.NUM_PAIRS[1:] and ratio.is_narrow and ratio.low <= RATIO <= ratio.high


def test_no_pairs_are_added_when_the_time_is_used_up(monkeypatch):
    machine = Machine(monkeypatch, noise=0.5)
    monkeypatch.setattr(speed, "MAX_SECONDS", 5.0)
    assert time_them()[2].num_pairs == speed.NUM_PAIRS[0] and machine.now > 5.0


@pytest.mark.parametrize(
    ("ratio", "is_telling"),
    [
        (SpeedRatio(1.37, 1.33, 1.41, 11), True),
        (SpeedRatio(1.0, 0.97, 1.04, 11), True),  # equally fast, and that is known
        (SpeedRatio(1.3, 1.2, 1.45, 31), True),
        (SpeedRatio(1.05, 0.95, 1.15, 31), False),  # faster or slower
        (SpeedRatio(2.0, 1.2, 3.0, 31), False),  # faster, but by what
        (SpeedRatio(1.37, 1.37, 1.37, 5), False),  # too few to know how sure it is
    ],
)
def test_a_ratio_is_stated_where_its_range_says_something(ratio, is_telling):
    assert ratio.is_telling == is_telling
    assert ("×" in str(ratio)) == is_telling


@pytest.mark.parametrize(("number", "cut"), [(5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (15, 3), (31, 9)])
def test_the_interval_of_a_median_is_that_of_the_sign_test(number, cut):
    """Ranks from any table of the sign test at 5 %, two-sided."""
    values = [float(value) for value in range(number)]
    assert median_interval(values[::-1]) == ((number - 1) / 2, cut, number - 1 - cut)


def test_the_interval_holds_the_median_as_often_as_it_says():
    chance, number = random.Random(0), 11
    draws = [[chance.expovariate(1) for _ in range(number)] for _ in range(4000)]
    hits = sum(low <= 0.693147 <= high for _, low, high in map(median_interval, draws))
    assert 0.95 <= hits / len(draws) < 1
