"""A run with fewer tokens: the checkpoint is a standard one, and everything else works as with all of them."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import make_model, make_tokenizer
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import TrimConfig, TrimHistory
from trim_trainer.vocabulary.errors import VocabularyError

NUM_TOKENS = 24
FIELDS = {"target_layers": 4, "vocab_size": NUM_TOKENS, "calibration_metric": "loss", "sparse_update_ratio": None}


@pytest.fixture
def trainer_of(make_trainer):
    def make(**fields):
        return make_trainer(**FIELDS | fields)

    return make


def test_the_checkpoint_has_the_smaller_vocabulary_and_says_so(trainer_of, sets, tmp_path):
    whole, base = make_tokenizer(), make_model()
    trainer = trainer_of()
    rows = trainer.train_dataset["input_ids"]
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "run"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == NUM_TOKENS
    history = TrimHistory.load(folder)
    record = history.vocabulary
    assert history == trainer.history and history.depth == 4
    assert (record.num_before, record.num_tokens) == (len(whole), NUM_TOKENS)
    assert record.num_parameters == base.num_parameters() > history.untrimmed.num_parameters
    trained, calibrated, evaluated = record.texts
    assert trained.kept_ratio == calibrated.kept_ratio == 1 and trained.num_before == trained.num_after
    assert (
        evaluated.name == "the evaluation set" and evaluated.num_texts == len(sets[1]) + 2
    )  # of each other choice one
    # what trained is what the whole tokenizer makes of the texts
    row = sets[0][0]
    texts = [tokenizer.decode(ids) for ids in rows]
    assert whole.decode(whole(row["prompt"] + row["completion"])["input_ids"]) in " ".join(texts)
    card = (folder / "README.md").read_text()
    assert f"{NUM_TOKENS} of {len(whole)} tokens" in card and "| `train_dataset` |" in card
    assert "with the smaller vocabulary" in card


def test_the_model_begins_with_the_rows_that_it_had(trainer_of):
    whole = make_model()
    trainer = trainer_of()
    old, new = make_tokenizer().get_vocab(), trainer.processing_class.get_vocab()
    for token, number in new.items():
        for one, other in (
            (whole.get_input_embeddings(), trainer.model.get_input_embeddings()),
            (whole.get_output_embeddings(), trainer.model.get_output_embeddings()),
        ):
            assert torch.equal(other.weight[number], one.weight[old[token]])


def test_a_name_is_loaded_as_sfttrainer_loads_it(trainer_of, tmp_path, caplog):
    make_model().save_pretrained(tmp_path / "whole")
    make_tokenizer().save_pretrained(tmp_path / "whole")
    kwargs = {"dtype": "bfloat16"}
    trainer = trainer_of(model=str(tmp_path / "whole"), model_init_kwargs=kwargs, processing_class=None)
    assert trainer.model.dtype == torch.bfloat16 and trainer.args.model_init_kwargs == kwargs
    assert len(trainer.processing_class) == NUM_TOKENS
    assert "model_init_kwargs" not in caplog.text


@pytest.mark.parametrize("modules", [["q_proj"], ["q_proj", "embed_tokens"]])
def test_an_adapter_is_trained_and_merged(trainer_of, tmp_path, modules):
    trainer = trainer_of(peft_config=LoraConfig(r=2, target_modules=modules))
    trainer.train()
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.vocab_size == NUM_TOKENS


def test_a_resumed_run_ends_like_one_that_was_not_stopped(trainer_of, tmp_path):
    straight = trainer_of(output_dir="straight", save_strategy="steps", save_steps=8)
    straight.train()
    resumed = trainer_of(output_dir="straight")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-8"))
    assert resumed.history.dropped == straight.history.dropped
    assert resumed.history.vocabulary == straight.history.vocabulary
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert_close(one, other)


def test_other_texts_or_another_size_are_refused_when_resuming(trainer_of, sets, tmp_path):
    trainer_of(save_strategy="steps", save_steps=8).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-8")
    for number in (NUM_TOKENS - 1, None):
        with pytest.raises(ValueError, match=f"`vocab_size` is {number}, but .* was trained with {NUM_TOKENS} tokens"):
            trainer_of(vocab_size=number).train(resume_from_checkpoint=checkpoint)
    others = Dataset.from_list([{**row, "prompt": f"mat {row['prompt']}"} for row in sets[0]])
    with pytest.raises(
        ValueError, match=f"was trained with {NUM_TOKENS} tokens, others. Pass the `vocab_size`, `vocab_corpus`"
    ):
        trainer_of(train_dataset=others).train(resume_from_checkpoint=checkpoint)


def test_a_teacher_with_the_whole_vocabulary_teaches_the_tokens_that_stayed(trainer_of, tmp_path):
    teacher = make_model(seed=5)
    teacher.save_pretrained(tmp_path / "teacher")
    trainer = trainer_of(distill_from=str(tmp_path / "teacher"))
    batch = next(iter(trainer.get_train_dataloader()))
    old, new = make_tokenizer().get_vocab(), trainer.processing_class.get_vocab()
    ids = [old[token] for token, _ in sorted(new.items(), key=lambda item: item[1])]
    is_scored = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        whole = torch.tensor(ids)[batch["input_ids"]]
        theirs = (
            teacher(input_ids=whole, attention_mask=batch["attention_mask"]).logits[:, :-1][..., ids].log_softmax(-1)
        )
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ours = trainer.model(**inputs).logits[:, :-1].log_softmax(-1)
        expected = ((theirs.exp() * (theirs - ours)).sum(-1) * is_scored).sum()
        output = trainer.causal_lm.base_model(**inputs)
        output.last_hidden_state = output.last_hidden_state[:, :-1][is_scored][None]
        found = trainer.teacher.divergence(trainer.causal_lm, output, batch)
    assert_close(found, expected)
    trainer.train()


def test_a_corpus_is_counted_and_said_how_it_fares(trainer_of, tmp_path):
    (tmp_path / "corpus.txt").write_text("a dog is a cat\n" * 30)
    trainer = trainer_of(vocab_corpus=str(tmp_path / "corpus.txt"))
    *_, others = trainer.history.vocabulary.texts
    assert others.name == "other texts" and others.num_texts == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 3}, "`vocab_size` is 3, but special and added tokens"),
        ({"vocab_size": 9}, "the texts have"),
        ({"vocab_size": 4000}, "ask for fewer, or leave it out"),
        ({"data_collator": lambda rows: rows}, "`data_collator` was made with the whole vocabulary"),
        ({"streaming": True}, "`train_dataset` is a stream"),
        ({"tokens": True}, "of tokens already"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything(trainer_of, sets, fields, words):
    if fields.pop("streaming", False):
        fields["train_dataset"] = sets[0].to_iterable_dataset()
    if fields.pop("tokens", False):
        fields["train_dataset"] = Dataset.from_list([{"input_ids": [3, 4, 5, 6]}] * 40)
    with pytest.raises(VocabularyError, match=words):
        trainer_of(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 100}, "neither `target_layers` nor `target_ratio`"),
        ({"vocab_size": 0, "target_layers": 2}, "`vocab_size` is 0, expected at least 1 token"),
        ({"vocab_corpus": "texts", "target_layers": 2}, "`vocab_size` is not set"),
    ],
)
def test_settings_that_contradict_each_other(fields, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        TrimConfig(str(tmp_path), **fields)


def test_the_facts_are_plain_data(trainer_of, tmp_path):
    trainer = trainer_of()
    trainer.history.save(tmp_path)
    plain = json.loads((tmp_path / "trim_history.json").read_text())["vocabulary"]
    assert plain["num_tokens"] == NUM_TOKENS and plain["texts"][0]["name"] == "`train_dataset`"
    assert TrimHistory.load(tmp_path) == trainer.history
