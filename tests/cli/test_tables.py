"""What the commands print about speed."""

from dataclasses import replace
from types import SimpleNamespace

from histories import make_history

from trim_trainer.cli.tables import print_summary
from trim_trainer.records.measurement import Measurement, SpeedRatio


def summary(capsys, ratio):
    history = make_history()
    before = replace(history.untrimmed, decode_tokens_per_second=24.6)
    after = Measurement(4, 700, decode_tokens_per_second=33.7, decode_ratio=ratio)
    print_summary(
        SimpleNamespace(history=replace(history, untrimmed=before).add(after), args=SimpleNamespace(output_dir="out"))
    )
    return capsys.readouterr().out


def test_the_summary_states_a_ratio_with_its_spread(capsys):
    printed = summary(capsys, SpeedRatio(1.37, 1.33, 1.41, 11))
    assert "24.6" in printed and "33.7" in printed
    assert "Tokens/s of this model to those of the untrimmed one: 1.37× (1.33–1.41, 11 pairs in turns)." in printed


def test_the_summary_says_that_the_machine_was_too_busy(capsys):
    printed = summary(capsys, SpeedRatio(0.82, 0.55, 1.6, 31))
    assert "the machine was too busy to tell: 31 pairs of runs in turns differ too much." in printed
    assert "×" not in printed and "24.6" not in printed and "33.7" not in printed


def test_the_summary_of_two_that_were_not_timed_in_turns_has_no_ratio(capsys):
    printed = summary(capsys, None)
    assert "24.6" in printed and "33.7" in printed and "×" not in printed
