"""Runs that are really killed, resumed, and compared with a run that was never killed."""

import dataclasses
import os
import random
import shutil
import signal
import time

import pytest
import torch
from forked import CONTEXT
from killed_run import BASE, run
from safetensors.torch import load_file

from trim_trainer import TrimHistory
from trim_trainer.checkpoints.whole import CheckpointError, find_checkpoint, missing_parts

SETTINGS = {
    "sparse update": {},
    "all parameters": {"sparse_update_ratio": None, "gradient_accumulation_steps": 2},
    # Layers of the largest norm hurt most: the floor is crossed, and the run rolls back.
    "quality floor": {"max_metric_drop": 0.0, "importance": "activation_norm", "learning_rate": 1e-4},
    "race": {"racing_confidence": 0.9, "save_total_limit": 1},
}


def start(output_dir, settings):
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=run, args=(str(output_dir), settings, started.set))
    process.start()
    assert started.wait(120)
    return process


def finish(output_dir, settings):
    process = start(output_dir, settings)
    process.join(300)
    assert process.exitcode == 0
    return output_dir / "final"


def without_times(history):
    """The history but for what a clock says, and the name of its folder."""
    no_speed = {"decode_tokens_per_second": None}
    measured = tuple(dataclasses.replace(entry, **no_speed, decode_ratio=None) for entry in history.measurements)
    rounds = tuple(dataclasses.replace(entry, seconds=0.0, drop_seconds=0.0, **no_speed) for entry in history.rounds)
    untrimmed = dataclasses.replace(history.untrimmed, **no_speed)
    return dataclasses.replace(history, rounds=rounds, untrimmed=untrimmed, measurements=measured, card=None)


def assert_equal_endings(one, other):
    assert without_times(TrimHistory.load(one)) == without_times(TrimHistory.load(other))
    expected, found = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory):
    """Runs that were never killed, and how long they take from the first step on, by name of the settings."""
    done = {}

    def whole(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("whole")
            process = start(folder, SETTINGS[name])
            started = time.monotonic()
            process.join(300)
            assert process.exitcode == 0
            done[name] = (folder / "final", time.monotonic() - started)
        return done[name]

    return whole


def kill_and_resume(name, share, folder, whole_runs):
    """Kill a run after a share of its time, resume it to its end; return where it was killed."""
    whole, seconds = whole_runs(name)
    while True:
        process = start(folder, SETTINGS[name])
        time.sleep(share * seconds)
        if process.is_alive():
            break
        share *= 0.9  # the machine was busier when the whole run was timed: this one has ended already
        shutil.rmtree(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    found = sorted(folder.glob("checkpoint-*"), key=os.path.getmtime)
    broken = [path.name for path in found if missing_parts(path)]
    assert_equal_endings(whole, finish(folder, SETTINGS[name]))
    last = found[-1].name if found else "nothing saved"
    return f"{name}: killed at {share:.2f} of its time, last {last}{', half-written' if broken else ''}"


@pytest.mark.parametrize("name", ["all parameters", pytest.param("quality floor", marks=pytest.mark.slow)])
def test_a_killed_run_ends_like_one_that_was_not(name, tmp_path, whole_runs):
    kill_and_resume(name, random.Random(name).uniform(0.3, 0.8), tmp_path / "run", whole_runs)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_twenty_kills_at_random_moments_have_equal_endings(number, tmp_path, whole_runs, capsys):
    share = random.Random(number).random()
    said = kill_and_resume(list(SETTINGS)[number % len(SETTINGS)], share, tmp_path / "run", whole_runs)
    with capsys.disabled():
        print(f"\n{said}; ends equal")  # noqa: T201


def test_the_floor_is_crossed_in_the_run_that_is_killed(whole_runs):
    history = TrimHistory.load(whole_runs("quality floor")[0])
    assert history.stopped is not None and history.depth > BASE["target_layers"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["_save_optimizer_and_scheduler", "_save_rng_state", "score", "sync_parameters"])
def test_killed_inside_a_save_a_scan_or_a_drop(moment, tmp_path, whole_runs):
    folder = tmp_path / "run"
    process = CONTEXT.Process(target=_die_inside, args=(str(folder), moment))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    if moment.startswith("_save"):
        last = max(folder.glob("checkpoint-*"), key=os.path.getmtime)
        assert "trainer_state.json is missing" in missing_parts(last)
    assert_equal_endings(whole_runs("sparse update")[0], finish(folder, SETTINGS["sparse update"]))


def _die_inside(output_dir, moment):
    """Run, and be killed inside the second call of a method, or the third scan."""
    from trim_trainer import TrimTrainer
    from trim_trainer.training.trimming import Trimming

    owner = Trimming if moment == "score" else TrimTrainer
    original, calls = getattr(owner, moment), []

    def dying(self, *args, **kwargs):
        calls.append(moment)
        if len(calls) == (3 if moment == "score" else 2):
            if moment == "sync_parameters":  # layers are gone, the optimizer does not know it yet
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, *args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(owner, moment, dying)
    run(output_dir, SETTINGS["sparse update"])


def test_half_written_checkpoints_are_passed_over(tmp_path, whole_runs):
    shutil.copytree(whole_runs("sparse update")[0].parent, tmp_path / "run")
    folder = tmp_path / "run"
    assert find_checkpoint(folder, True).endswith("checkpoint-24")
    (folder / "checkpoint-24" / "trainer_state.json").unlink()
    state = folder / "checkpoint-20" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert find_checkpoint(folder, True).endswith("checkpoint-16")
    with pytest.raises(CheckpointError, match="checkpoint-20.* trainer_state.json ends in the middle.*Name another"):
        find_checkpoint(folder, str(folder / "checkpoint-20"))
    with pytest.raises(CheckpointError, match="holds no whole checkpoint.*overwrite_output_dir"):
        find_checkpoint(folder / "final", True)
