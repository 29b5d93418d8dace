import json
import subprocess
import sys

import pytest
import torch
import zoo
from datasets import Dataset
from tiny import NUM_LAYERS, TRAINING, make_examples, make_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification
from trl import BEMACallback, SFTConfig, SFTTrainer

from trim_trainer import TrimConfig, TrimHistory, TrimTrainer, verify_checkpoint
from trim_trainer.architectures.modules import find_layers
from trim_trainer.records.measurement import SpeedRatio


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("config_class", [SFTConfig, TrimConfig])
def test_without_a_target_it_is_sft_trainer(config_class, make_trainer):
    fields = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "num_train_epochs": 2}
    expected = make_trainer(SFTTrainer, SFTConfig, **fields)
    trainer = make_trainer(config_class=config_class, **fields)
    expected.train()
    trainer.train()
    assert losses(trainer) == losses(expected)
    assert trainer.evaluate()["eval_loss"] == expected.evaluate()["eval_loss"]
    for name, tensor in weights(expected).items():
        assert torch.equal(trainer.model.state_dict()[name], tensor)


def test_a_script_changes_two_names(tmp_path, tokenizer):
    """An SFT script runs with SFTTrainer and SFTConfig, and with only these two names replaced."""
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(make_examples(24)).to_json(tmp_path / "train.jsonl")
    script = f"""
import torch; torch.set_num_threads(1)
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

dataset = load_dataset("json", data_files="{tmp_path}/train.jsonl", split="train")
args = SFTConfig(output_dir="{tmp_path}/out", use_cpu=True, bf16=False, max_steps=4, logging_steps=1, report_to="none")
trainer = SFTTrainer(model="{tmp_path}/model", args=args, train_dataset=dataset)
trainer.train()
trainer.save_model()
print([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
"""
    changed = script.replace("SFTConfig", "TrimConfig").replace("SFTTrainer", "TrimTrainer")
    changed = changed.replace("from trl import", "from trim_trainer import")
    one, other = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
        for code in (script, changed)
    )
    assert len(json.loads(one[-1])) == 4
    assert one[-1] == other[-1]


def test_it_reaches_the_target_and_leaves_a_standard_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=3)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "run"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert model.config.num_hidden_layers == len(find_layers(model)) == 3
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    names |= {"trim_history.json", "recipe.yaml", "trim_importance.png", "trim_metric.png"}
    assert names <= {path.name for path in folder.iterdir()}

    history = TrimHistory.load(folder)
    assert history == trainer.history
    assert [a_round.step for a_round in history.drops] == [1, 2, 3]
    assert [a_round.depth_after for a_round in history.drops] == [5, 4, 3]
    assert history.calibration_size == 12 and history.calibration_metric == "accuracy"
    before, after = history.untrimmed, history.trimmed
    assert (before.depth, after.depth, after.evaluation.num_examples) == (6, 3, 24)
    assert after.num_parameters == sum(p.numel() for p in model.parameters()) < before.num_parameters
    logged = [entry["trim_depth"] for entry in trainer.state.log_history if "trim_depth" in entry]
    assert logged == [5, 4, 3]


def test_both_depths_are_timed_at_the_end(make_trainer, monkeypatch):
    """A machine that is slower or faster at the end does not change the ratio that the card states."""
    timed, ratio = [], SpeedRatio(2.0, 1.9, 2.1, 7)

    def measure(*models):
        timed.append([len(find_layers(model)) for model in models])
        return 30.0, 60.0, ratio

    monkeypatch.setattr("trim_trainer.training.measuring.measure_in_turns", measure)
    trainer = make_trainer(target_layers=3)
    trainer.train()
    assert timed == [[6, 3]]
    before, after = trainer.history.untrimmed, trainer.history.trimmed
    assert (before.decode_tokens_per_second, after.decode_tokens_per_second) == (30.0, 60.0)
    assert (before.decode_ratio, after.decode_ratio) == (None, ratio)


def test_each_drop_is_the_layer_that_hurts_least(make_trainer):
    trainer = make_trainer(target_layers=3, calibration_metric="loss", importance="sensitivity")
    trainer.train()
    for a_round in trainer.history.drops:
        assert a_round.score_of(a_round.dropped[0]) == min(a_round.scores)
        # The metric right after the drop is what the scan foresaw for it.
        assert a_round.metric_after == pytest.approx(a_round.metric + min(a_round.scores), abs=1e-5)


@pytest.mark.parametrize("ratio", [0.34, None])
def test_only_the_sparse_update_trains(ratio, make_trainer):
    trainer = make_trainer(target_layers=4, sparse_update_ratio=ratio)
    start = {id(p): p.detach().clone() for p in trainer.model.parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, start[id(p)])}
    if ratio is None:
        assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= changed
        return
    ever_trained = {layer for a_round in trainer.history.rounds for layer in a_round.trained_layers}
    kept = trainer.history.kept
    assert changed and {kept[int(name.split(".")[2])] for name in changed} <= ever_trained
    assert all(len(a_round.trained_layers) == 3 for a_round in trainer.history.rounds)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"trim_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}, [16, 32]),
        ({"trim_steps": 5}, [5, 10]),
        ({"trim_steps": 0.25, "layers_per_trim": 2}, [4]),
        ({"trim_delay": 10, "trim_steps": 4}, [12, 16]),
        ({"target_layers": None, "target_ratio": 0.33}, [1, 2]),
    ],
)
def test_drops_come_when_the_schedule_says(fields, steps, make_trainer):
    trainer = make_trainer(**({"target_layers": 4} | fields))
    trainer.train()
    assert [a_round.step for a_round in trainer.history.drops] == steps
    assert trainer.model.config.num_hidden_layers == 4


@pytest.mark.parametrize("importance", ["activation_norm", "tail", "random"])
def test_other_criteria_and_protected_layers(importance, make_trainer):
    trainer = make_trainer(target_layers=3, importance=importance, protected_layers=[5, 1])
    trainer.train()
    assert {1, 5} <= set(trainer.history.kept) and trainer.history.depth == 3
    if importance == "tail":
        assert trainer.history.dropped == (4, 3, 2)


def test_calibration_examples_are_held_out_of_the_training_set(make_trainer):
    trainer = make_trainer(target_layers=4, calibration=False, calibration_size=10)
    assert (len(trainer.train_dataset), trainer.history.calibration_size) == (54, 10)


def test_plain_text_is_calibrated_by_loss(make_trainer):
    texts = Dataset.from_list([{"text": e["prompt"] + e["completion"]} for e in make_examples(20)])
    trainer = make_trainer(target_layers=5, train_dataset=texts, calibration=False, calibration_size=4)
    trainer.train()
    assert trainer.history.calibration_metric == "loss"
    assert trainer.history.depth == 5


def test_depths_on_the_way_are_kept_as_checkpoints(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=3, save_depths=[5, 4])
    trainer.train()
    for depth in (5, 4):
        folder = tmp_path / "run" / f"depth-{depth}"
        assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == depth
        history = TrimHistory.load(folder)
        assert history.depth == history.trimmed.depth == depth
        assert f"num_hidden_layers` is {depth}" in (folder / "README.md").read_text()


def test_crossing_the_quality_floor_restores_the_last_good_depth(make_trainer):
    trainer = make_trainer(target_layers=2, max_metric_drop=0.05, calibration_metric="loss")
    metrics = iter([1.0, 1.04, 1.2])  # at depth 6, 5 and 4: the third is below the floor
    calibrate, at_depth = trainer.trimming.score, {}

    def fixed_metric():
        scored = calibrate()
        if trainer.state.global_step:  # not the scan that begins the sparse update
            at_depth[trainer.history.depth] = weights(trainer)
            return type(scored)(scored.scores, scored.activation_norms, next(metrics))
        return scored

    trainer.trimming.score = fixed_metric
    restored = []
    roll_back = trainer.trimming.roll_back

    def roll_back_and_look(metric):
        roll_back(metric)
        restored.append((trainer.state.global_step, weights(trainer)))

    trainer.trimming.roll_back = roll_back_and_look
    trainer.trimming.measure_metric = lambda: 1.0
    trainer.train()
    assert trainer.history.depth == trainer.model.config.num_hidden_layers == 5
    assert "was 1.2 at depth 4 and 1 before the first drop" in trainer.history.stopped
    ((step, after),) = restored
    assert step < trainer.state.max_steps  # the rest of the schedule healed it
    for name, tensor in at_depth[5].items():
        assert torch.equal(after[name], tensor)
    layers, kept = find_layers(trainer.model), trainer.history.kept
    trained = {p for layer in trainer.history.trained_layers for p in layers[kept.index(layer)].parameters()}
    assert {p for group in trainer.optimizer.param_groups for p in group["params"]} == trained
    assert any(not torch.equal(weights(trainer)[name], tensor) for name, tensor in after.items())


def test_a_resumed_run_ends_like_one_that_was_not_stopped(make_trainer, tmp_path):
    fields = {"target_layers": 3, "save_strategy": "steps", "save_steps": 6}
    whole = make_trainer(**fields, output_dir="whole")
    whole.train()
    make_trainer(**fields).train()
    checkpoint = tmp_path / "run" / "checkpoint-6"
    resumed = make_trainer(**fields)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [r.dropped for r in resumed.history.rounds] == [r.dropped for r in whole.history.rounds]
    assert [r.scores for r in resumed.history.rounds] == [r.scores for r in whole.history.rounds]
    for name, tensor in weights(whole).items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_checkpoint_of_another_model_is_not_resumed(make_trainer, tmp_path):
    make_trainer(target_layers=3, save_strategy="steps", save_steps=6).train()
    other = make_trainer(target_layers=3, model=make_model(num_layers=5))
    with pytest.raises(ValueError, match="began with 6 layers, the model has 5"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))


def test_another_run_in_the_folder_is_neither_overwritten_nor_mixed(make_trainer, tmp_path):
    first = make_trainer(target_layers=4, save_strategy="steps", save_steps=8)
    first.train()
    again = make_trainer(target_layers=4)
    with pytest.raises(FileExistsError, match="holds another run.*resume_from_checkpoint.*overwrite_output_dir"):
        again.train()
    assert (tmp_path / "run" / "checkpoint-8").is_dir()
    replaced = make_trainer(target_layers=4, overwrite_output_dir=True)
    replaced.train()
    assert not (tmp_path / "run" / "checkpoint-8").exists()


def classifier():
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, vocab_size=9
    )
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_layers": NUM_LAYERS}, "`target_layers` is 6, but the model has 6 layers"),
        ({"target_layers": 9}, "between 1 and 5"),
        ({"target_layers": 4, "calibration": False, "calibration_size": 64}, "`calibration_size` is 64"),
        ({"target_layers": 2, "protected_layers": [0, 1, 2]}, "`protected_layers` names 3 layers"),
        ({"target_layers": 2, "protected_layers": [7]}, "from 0 to 5"),
        ({"target_layers": 4, "model": classifier()}, "no language-modelling head"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_refused_before_training(fields, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(**fields)


def test_a_folder_without_a_model_is_named_with_its_last_checkpoint(make_trainer, tmp_path):
    (tmp_path / "stopped" / "checkpoint-8").mkdir(parents=True)
    with pytest.raises(
        OSError, match="has no config.json, so there is no model in it. Its last checkpoint is '.*checkpoint-8'"
    ):
        make_trainer(model=str(tmp_path / "stopped"), target_layers=4)


def test_overlapping_sets_are_refused(sets, tokenizer, tmp_path):
    train, evaluation, _ = sets
    args = TrimConfig(output_dir=str(tmp_path), target_layers=4, **TRAINING)
    with pytest.raises(ValueError, match="shares 3 example"):
        TrimTrainer(
            make_model(), args, train_dataset=train, eval_dataset=evaluation, processing_class=tokenizer,
            calibration_dataset=evaluation.select(range(3)),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_layers": 1, "trim_steps": 4}, "`target_layers` is 1, but 16 steps have room for 4 drop"),
        ({"target_layers": 3, "save_depths": [2]}, r"`save_depths` contains \[2\]"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_the_first_step(fields, message, make_trainer):
    trainer = make_trainer(**fields)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert trainer.history.rounds == ()


def test_a_callback_that_averages_layer_by_layer_is_refused_with_a_target_alone(make_trainer, tmp_path):
    averaging = {"callbacks": [BEMACallback(update_freq=2)], "output_dir": "averaged"}
    trainer = make_trainer(target_layers=4, **averaging)
    with pytest.raises(ValueError, match="A target is set, and BEMACallback is among the callbacks.*Leave it out"):
        trainer.train()
    assert trainer.state.global_step == 0
    make_trainer(**averaging).train()
    averaged = AutoModelForCausalLM.from_pretrained(tmp_path / "averaged" / "bema")
    assert len(averaged.model.layers) == averaged.config.num_hidden_layers == NUM_LAYERS


def test_layers_that_have_to_stay_are_never_proposed(make_trainer, tmp_path):
    """By tail, Gemma 4 would lose its last layer, which its config makes a `full_attention` layer."""
    model = zoo.make("gemma4_text@noshare_nople")
    assert model.config.layer_types[-1] == "full_attention"
    trainer = make_trainer(model=model, target_layers=2, importance="tail")
    trainer.train()
    trainer.save_model()
    assert trainer.history.depth == 2
    assert trainer.model.config.layer_types[-1] == "full_attention"
    verify_checkpoint(tmp_path / "run", trainer.model)


def test_a_target_that_layers_in_need_of_each_other_forbid_is_refused(make_trainer):
    with pytest.raises(
        ValueError, match="`target_layers` is 3, but 'inkling2_text' can only lose layers down to a depth"
    ):
        make_trainer(model=zoo.make("inkling2_text"), target_layers=3)


def test_the_run_says_which_runtimes_would_misread_the_result(make_trainer, tmp_path, caplog):
    trainer = make_trainer(model=make_model("gemma3_text"), target_layers=4)
    trainer.train()
    assert sum("of 'gemma3_text' that every 6th" in record.message for record in caplog.records) == 1
    trainer.save_model()
    assert "llama.cpp assumes of 'gemma3_text' that every 6th layer" in (tmp_path / "run" / "README.md").read_text()


def test_a_race_is_recorded(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=4, calibration_metric="loss", racing_confidence=0.9)
    trainer.train()
    trainer.save_model()
    for a_round in TrimHistory.load(tmp_path / "run").rounds:
        assert max(a_round.num_examples) == 12 and min(a_round.num_examples) >= 8
        for layer in a_round.dropped:  # scored on every example, like the others that were left at the end
            assert a_round.num_examples[a_round.layers.index(layer)] == 12


def test_a_criterion_of_the_user_chooses(sets, tokenizer, tmp_path):
    def first_layer(calibration):
        return torch.arange(calibration.num_layers, dtype=torch.float32)

    train, evaluation, calibration = sets
    args = TrimConfig(output_dir=str(tmp_path / "run"), target_layers=4, **TRAINING)
    trainer = TrimTrainer(
        make_model(), args, train_dataset=train, eval_dataset=evaluation, processing_class=tokenizer,
        calibration_dataset=calibration, importance=first_layer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    assert trainer.history.dropped == (0, 1)
    assert trainer.history.importance == "first_layer"
    assert "Criterion: first_layer, by" in (tmp_path / "run" / "README.md").read_text()
