"""Texts that training cuts are scored as they are cut: in calibration, in the accuracy of the evaluation set, in drops."""

import pytest
from datasets import Dataset
from tiny import TRAINING, make_examples, make_model, make_tokenizer
from trl import SFTConfig, SFTTrainer

from trim_trainer import TrimConfig, TrimTrainer
from trim_trainer.data.splits import CalibrationError

NUM_POSITIONS = 24


def with_long_prompts(number, first=0, every=2):
    """Multiple choice of 11 tokens; of every second example the prompt alone is longer than the model's positions."""
    rows = make_examples(number, first)
    return [
        {**row, "prompt": ("the cat sat on the mat " * 6 if i % every == 0 else "") + row["prompt"]}
        for i, row in enumerate(rows)
    ]


def make(trainer_class, config_class, folder, every=2, **fields):
    sets = [Dataset.from_list(with_long_prompts(number, first, every)) for number, first in ((40, 0), (12, 100))]
    options = {}
    if "target_layers" in fields:
        options["calibration_dataset"] = Dataset.from_list(with_long_prompts(16, 200, every))
    args = config_class(str(folder), **TRAINING | {"max_steps": 6} | fields)
    model = make_model("gpt2", n_positions=NUM_POSITIONS)
    return trainer_class(
        model, args, train_dataset=sets[0], eval_dataset=sets[1], processing_class=make_tokenizer(), **options
    )


def labelled(rows):
    return [[label for label in row["labels"] if label != -100] for row in rows]


def counted(examples):
    return [list(example.counted(example.answer)) for example in examples]


def test_gpt2_with_longer_prompts_trains_and_drops(tmp_path, caplog):
    fields = {"max_length": NUM_POSITIONS, "compensation_size": 8}
    expected = make(SFTTrainer, SFTConfig, tmp_path / "sft", max_length=NUM_POSITIONS)
    expected.train()
    trainer = make(TrimTrainer, TrimConfig, tmp_path / "trim", target_layers=4, **fields)
    assert "8 of 16 examples have no token to score within `max_length` 24" in caplog.text
    assert len(trainer.trimming.examples) == 8 and len(trainer.train_dataset) == len(expected.train_dataset) == 20
    evaluation = Dataset.from_list(with_long_prompts(12, 100))
    assert counted(trainer.tokenize_examples(evaluation)) == labelled(expected.eval_dataset)
    trainer.train()
    assert trainer.model.config.num_hidden_layers == 4
    assert trainer.history.trimmed.evaluation.num_examples == 6
    assert {len(e.prompt_ids + e.choice_ids[0]) for e in trainer.compensation.examples} == {10}


def test_the_ends_of_texts_are_kept_where_that_is_asked_for(tmp_path):
    fields = {"max_length": 9, "truncation_mode": "keep_end"}
    expected = make(SFTTrainer, SFTConfig, tmp_path / "sft", **fields)
    trainer = make(TrimTrainer, TrimConfig, tmp_path / "trim", target_layers=4, **fields)
    examples = trainer.tokenize_examples(Dataset.from_list(with_long_prompts(12, 100)))
    assert len(trainer.trimming.examples) == 16
    for example, row in zip(examples, expected.eval_dataset, strict=True):
        assert list(example.prompt_ids + example.choice_ids[example.answer]) == row["input_ids"]
    trainer.train()
    assert trainer.history.depth == 4 and "eval_accuracy" in trainer.evaluate()


def test_a_length_behind_which_nothing_counts_is_refused(tmp_path):
    with pytest.raises(
        CalibrationError, match=r"None of the 16 examples.*`max_length` 24.*Raise `max_length`.*keep_end"
    ):
        make(TrimTrainer, TrimConfig, tmp_path, every=1, target_layers=4, max_length=NUM_POSITIONS)


@pytest.mark.parametrize("num_experts", [0, 4])
def test_a_router_loss_that_sft_trainer_cannot_compute_is_refused_first(num_experts, tmp_path, make_trainer):
    import zoo
    from transformers import AutoModelForCausalLM

    config = zoo.make("granitemoehybrid").config
    config.num_local_experts = num_experts
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        ValueError, match="`router_aux_loss_coef` is 0.001 .the default of the model.*`num_experts`.*0.0"
    ):
        make_trainer(model=model, target_layers=5, max_steps=2)
    trainer = make_trainer(model=model, target_layers=5, max_steps=2, router_aux_loss_coef=0.0)
    trainer.train()
    assert trainer.history.depth == 5
