"""`trim-trainer drop --vocab-size` leaves a checkpoint with fewer tokens, that every other command takes."""

import pytest
import torch
import yaml
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import TrimHistory, drop_layers
from trim_trainer.cli.main import main
from trim_trainer.hub.staging import stage

NUM_TOKENS = 24


@pytest.fixture
def base(tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    Dataset.from_list(make_examples(40)).to_json(tmp_path / "colours.jsonl")
    return tmp_path / "base"


def drop(model, *options):
    return main(["drop", str(model), *options])


def same_logits(base, folder, layers=()):
    """Whether the checkpoint computes, of the tokens that it has, what the whole model without these layers does."""
    whole, model = (AutoModelForCausalLM.from_pretrained(each).eval() for each in (base, folder))
    tokenizer, smaller = (AutoTokenizer.from_pretrained(each) for each in (base, folder))
    drop_layers(whole, layers)
    text = make_examples(3)[2]["prompt"]
    vocab = tokenizer.get_vocab()
    old = [vocab[token] for token, _ in sorted(smaller.get_vocab().items(), key=lambda item: item[1])]
    with torch.no_grad():
        expected = whole(torch.tensor([tokenizer(text)["input_ids"]])).logits[..., old]
        found = model(torch.tensor([smaller(text)["input_ids"]])).logits
    return len(smaller) == len(old) == NUM_TOKENS and torch.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize("layers", [(), (2, 4)], ids=["tokens alone", "tokens and layers"])
def test_checkpoint_history_and_card(base, tmp_path, capsys, layers):
    options = ["--layers", ",".join(map(str, layers))] if layers else []
    data = ["--data", str(tmp_path / "colours.jsonl")]
    assert drop(base, *options, "--vocab-size", str(NUM_TOKENS), *data, "--output", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    num_before = len(make_tokenizer())
    assert f"{num_before} → {NUM_TOKENS} tokens." in said and "100.0 % of the tokens stayed" in said
    assert same_logits(base, tmp_path / "out", layers)
    history = TrimHistory.load(tmp_path / "out")
    assert history.depth == 6 - len(layers) and history.dropped == layers
    assert (history.vocabulary.num_before, history.vocabulary.num_tokens) == (num_before, NUM_TOKENS)
    assert history.vocabulary.num_parameters == make_model().num_parameters() == history.untrimmed.num_parameters
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"with {NUM_TOKENS} of its {num_before} tokens, and not trained since" in " ".join(card.split())
    assert ("No layer was dropped and nothing was trained" in card) == (not layers)
    for unsaid in ("Nothing yet", "0 of its 6", "None", "nan", "fine-tuned"):
        assert unsaid not in card.split("## Citation")[0], unsaid
    assert stage(tmp_path / "out", "me/small")[0].revision == "main"


def test_a_recipe_says_what_the_texts_are(base, tmp_path):
    rows = [{"animal": "cat", "colour": 0}, {"animal": "dog", "colour": 1}] * 4
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    recipe = {
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "doc_to_text": "the {{animal}} is",
        "doc_to_choice": ["red", "blue", "not"],
        "doc_to_target": "colour",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    data = ["--data", str(tmp_path / "recipe.yaml")]
    assert drop(base, "--vocab-size", "12", *data, "--output", str(tmp_path / "out")) == 0
    assert {"cat", "dog", "red", "blue", "not", "the", "is"} <= AutoTokenizer.from_pretrained(
        tmp_path / "out"
    ).get_vocab().keys()


def test_layers_that_go_afterwards_leave_the_record(base, tmp_path):
    data = ["--data", str(tmp_path / "colours.jsonl")]
    assert drop(base, "--vocab-size", str(NUM_TOKENS), *data, "--output", str(tmp_path / "one")) == 0
    assert drop(tmp_path / "one", "--layers", "3", "--output", str(tmp_path / "two")) == 0
    one, two = (TrimHistory.load(tmp_path / name) for name in ("one", "two"))
    assert one.vocabulary == two.vocabulary and two.dropped == (3,)
    assert same_logits(base, tmp_path / "two", [3])


def test_a_corpus_fills_what_is_left(base, tmp_path):
    (tmp_path / "corpus.txt").write_text("mat road with from\n" * 20)
    options = ["--data", str(tmp_path / "colours.jsonl"), "--vocab-corpus", str(tmp_path / "corpus.txt")]
    assert drop(base, "--vocab-size", "28", *options, "--output", str(tmp_path / "out")) == 0
    assert {"mat", "road", "with", "from"} <= AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vocab-size", "24"], "--vocab-size and --data go together"),
        (["--data", "colours.jsonl", "--layers", "1"], "--vocab-size and --data go together"),
        (["--layers", "1", "--vocab-corpus", "x.txt"], "--vocab-corpus is for --vocab-size"),
        (["--vocab-size", "5", "--data", "colours.jsonl"], "the texts have"),
        (["--vocab-size", "0", "--data", "colours.jsonl"], "expected a whole number of at least 1"),
        (["--vocab-size", "24", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_does_not_go_together_is_refused(base, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    try:
        status = drop(base, *options, "--output", str(tmp_path / "out"))
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr().err
    assert status == 2 and words in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
