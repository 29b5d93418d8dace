import json

import pytest
import torch
import yaml
import zoo
from datasets import Dataset, load_dataset
from tiny import TRAINING, TRIMMING, make_examples, make_model, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from trl import SFTConfig

from trim_trainer import TrimConfig, TrimTrainer, drop_layers, droppable_layers, score_layers
from trim_trainer.checkpoints.loading import Source
from trim_trainer.cli.main import main
from trim_trainer.data.metrics import measure, scored_by
from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.evaluation.layers import report_layers
from trim_trainer.scoring.layout import ONE_BY_ONE
from trim_trainer.scoring.scan import score_choices


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(make_examples(20)).to_json(tmp_path / "data.jsonl")
    return str(tmp_path / "model"), str(tmp_path / "data.jsonl")


def test_json_holds_the_scores_that_python_gives(checkpoint, tokenizer, capsys):
    model, data = checkpoint
    assert main(["scan", model, "--data", data, "--size", "20", "--metric", "loss", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = score_layers(AutoModelForCausalLM.from_pretrained(model), tokenizer, make_examples(20), metric="loss")
    assert report["scores"] == pytest.approx(expected, abs=1e-5)
    assert report["num_examples"] == 20 and report["num_scored"] == [20] * 6 and report["droppable"] == [True] * 6


def test_a_scan_takes_over_as_a_run_does(checkpoint, tokenizer, capsys):
    model, data = checkpoint
    arguments = ["scan", model, "--data", data, "--size", "8", "--metric", "loss", "--json"]
    assert main([*arguments, "--compensation-size", "12"]) == 0
    report = json.loads(capsys.readouterr().out)
    drawn = load_dataset("json", data_files=data, split="train").shuffle(seed=0)
    rows, others = list(drawn.select(range(8))), list(drawn.select(range(8, 20)))
    loaded = AutoModelForCausalLM.from_pretrained(model)
    expected = score_layers(loaded, tokenizer, rows, metric="loss", compensation=others)
    assert report["scores"] == pytest.approx(expected, abs=1e-5) and report["num_examples"] == 8
    assert main(arguments) == 0
    plain = json.loads(capsys.readouterr().out)["scores"]
    assert plain[0] == pytest.approx(expected[0], abs=1e-5)  # none in front of the first
    assert all(abs(one - other) > 1e-4 for one, other in zip(plain[1:], expected[1:], strict=True))


@pytest.mark.parametrize("criterion", ["sensitivity", "block_influence", "taylor"])
def test_a_table_and_a_picture(criterion, checkpoint, tmp_path, capsys):
    model, data = checkpoint
    output = tmp_path / "report"
    assert main(["scan", model, "--data", data, "--criterion", criterion, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"{criterion} by loss, 20 examples" in printed and "loss of the whole model" in printed
    report = json.loads((output / "layer_scores.json").read_text())
    first = report["drop_order"][0]
    assert report["scores"][first] == min(report["scores"])
    assert ranked(printed)[:5] == report["drop_order"]
    assert (output / "layer_scores.png").read_bytes().startswith(b"\x89PNG")


def loss_of(model, tokenizer, rows):
    examples = scored_by("loss", tokenize_examples(rows, tokenizer))
    return measure(score_choices(model, examples, ONE_BY_ONE), examples, "loss").item()


def test_seams_are_scored_beside_layers(checkpoint, tmp_path, capsys):
    model, data = checkpoint
    arguments = ["scan", model, "--data", data, "--criterion", "sensitivity", "--unit", "sublayer", "--size", "20"]
    assert main([*arguments, "--output", str(tmp_path / "report")]) == 0
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "report" / "layer_scores.json").read_text())
    examples = report_layers(model, data, criterion="sensitivity", size=20)
    assert report["scores"] == pytest.approx(examples.scores, abs=1e-5) and report["seam_num_scored"] == [20] * 5
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), make_tokenizer()
    for front, score in enumerate(report["seam_scores"]):
        joined = drop_layers(AutoModelForCausalLM.from_pretrained(model), [], [(front, front + 1)])
        loss = loss_of(joined, tokenizer, make_examples(20)) - loss_of(loaded, tokenizer, make_examples(20))
        assert score == pytest.approx(loss, abs=1e-4)
    lowest = min([*report["scores"], *report["seam_scores"]])
    first = report["drop_order"][0]
    assert lowest == (report["seam_scores"][first[0]] if isinstance(first, list) else report["scores"][first])
    assert all(f" {front} | {front + 1} " in printed for front in range(5))
    assert len(report["drop_order"]) == 5 and any(isinstance(each, list) for each in report["drop_order"])
    assert main([*arguments[:4], "--criterion", "tail", "--unit", "sublayer"]) == 2
    assert "`importance` is 'tail', which scores whole layers only" in capsys.readouterr().err


def ranked(printed):
    """Layers in the order of a printed table."""
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    return [int(row[2]) for row in rows]


@pytest.mark.parametrize("options", [{}, {"racing_confidence": 0.9}])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@pytest.mark.parametrize("criterion", ["sensitivity", "late_sensitivity"])
def test_the_order_is_that_in_which_a_run_drops(
    criterion, metric, options, checkpoint, tokenizer, tmp_path, monkeypatch, capsys
):
    model, data = checkpoint
    fields = {"calibration_metric": metric, "calibration_size": 20, "learning_rate": 0.0, "max_steps": 4, **options}
    number = 3 if criterion == "sensitivity" else 1  # a fifth, of which the last may go
    fields |= {"importance": criterion, "layers_per_trim": number, "trim_steps": 1, "target_layers": 3}
    args = TrimConfig(str(tmp_path / "run"), **(TRAINING | TRIMMING | fields))
    train = Dataset.from_list(make_examples(16, first=100))
    calibration = Dataset.from_list(make_examples(20))
    trainer = TrimTrainer(model, args, train_dataset=train, calibration_dataset=calibration)
    trainer.train()
    expected = list(trainer.history.dropped)[: 1 if options else number]  # a race for three is run to another end
    drawn = []
    monkeypatch.setattr("trim_trainer.evaluation.layers.plot_layers", lambda *given: drawn.append(given[4]))
    arguments = [
        "scan",
        model,
        "--data",
        data,
        "--size",
        "20",
        "--metric",
        metric,
        "--criterion",
        criterion,
        "--output",
        str(tmp_path / "report"),
    ]
    arguments += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "report" / "layer_scores.json").read_text())
    if metric == "accuracy":
        assert report["scores"].count(min(report["scores"])) > 1  # so that norms decide
    assert report["drop_order"][: len(expected)] == expected and drawn == [expected[:1]]
    assert ranked(capsys.readouterr().out)[: len(expected)] == expected


@pytest.mark.parametrize("model_type", ["gemma3n_text", "granitemoehybrid", "minimax"])
def test_what_others_need_goes_behind_them_or_stays(model_type, tmp_path, tokenizer):
    model = zoo.make(model_type)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(make_examples(6)).to_json(tmp_path / "data.jsonl")
    report = report_layers(str(tmp_path / "model"), str(tmp_path / "data.jsonl"), metric="loss", racing_confidence=0.9)
    for number, layer in enumerate(report.drop_order):
        assert layer in droppable_layers(model, report.drop_order[:number])
    assert not droppable_layers(model, report.drop_order)
    assert sorted(report.order()) == list(range(len(report.scores)))
    assert [report.num_scored[layer] > 0 for layer in report.order()] == sorted(
        map(bool, report.num_scored), reverse=True
    )


def test_a_race_says_what_each_score_comes_from(checkpoint, capsys):
    model, data = checkpoint
    assert main(["scan", model, "--data", data, "--metric", "loss", "--racing-confidence", "0.9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert max(report["num_scored"]) == 20 and min(report["num_scored"]) >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "magic"], "`importance` is 'magic', expected one of: activation_norm, angular"),
        (["--split", "test"], "`split` is 'test', but"),
        (
            ["--size", "15", "--compensation-size", "6"],
            "`compensation_size` is 6, but behind the 15 examples that layers are",
        ),
    ],
)
def test_mistakes_are_one_sentence(options, message, checkpoint, capsys):
    model, data = checkpoint
    assert main(["scan", model, "--data", data, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_text_decoder_of_an_image_model_is_scored(tmp_path, tokenizer, capsys):
    model = zoo.make("gemma3", AutoModelForImageTextToText)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(make_examples(6)).to_json(tmp_path / "data.jsonl")
    arguments = ["scan", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl"), "--metric", "loss", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["scores"]) == model.config.get_text_config().num_hidden_layers
    assert report["scores"] == pytest.approx(score_layers(model, tokenizer, make_examples(6), metric="loss"), abs=1e-5)


def test_a_scan_cuts_long_examples_where_it_is_told_to(tmp_path, tokenizer, capsys):
    make_model("gpt2", n_positions=12).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    long = [{**row, "prompt": "the cat " * 10 + row["prompt"]} for row in make_examples(4, 50)]
    Dataset.from_list([*make_examples(8), *long]).to_json(tmp_path / "data.jsonl")
    arguments = ["scan", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl"), "--metric", "loss", "--json"]
    assert main(arguments) == 2
    assert "has 30 tokens, but `max_position_embeddings`" in capsys.readouterr().err
    assert main([*arguments, "--max-length", "12"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = score_layers(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tokenizer, make_examples(8), metric="loss"
    )
    assert report["num_examples"] == 8 and report["scores"] == pytest.approx(expected, abs=1e-5)


def test_a_scan_sees_tools(tmp_path, tokenizer, capsys):
    """A chat template that prints tools: the scores are those of the text with them."""
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}the {{ tool.name }} {% endfor %}"
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}Answer : {% endif %}"
    )
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "choices": [[{"role": "assistant", "content": f"Answer : {choice.strip()}"}] for choice in row["choices"]],
            "answer": row["answer"],
            "tools": [{"name": "road"}, {"name": "mat"}],
        }
        for row in make_examples(6)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "data.jsonl")
    arguments = ["scan", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl"), "--metric", "loss", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        losses = []
        for row in make_examples(6):
            prompt = tokenizer(f"the road the mat {row['prompt']} Answer :")["input_ids"]
            ids = [*prompt, *tokenizer(row["choices"][row["answer"]])["input_ids"]]
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            losses.append(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item())
    assert report["value"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_an_image_text_model_with_its_processor_is_scanned_by_what_trains(tmp_path):
    """Where there is a processor it prepares texts, as SFTTrainer would load it; else the tokenizer does."""
    model = zoo.make("gemma3", AutoModelForImageTextToText)
    model.save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    source = Source.of(str(tmp_path / "model"))
    assert source.is_composite and isinstance(source.load_processing_class(), PreTrainedTokenizerBase)
    LlavaProcessor(image_processor=CLIPImageProcessorPil(), tokenizer=tokenizer).save_pretrained(tmp_path / "model")
    assert isinstance(source.load_processing_class(), LlavaProcessor)


def test_a_scan_prepares_the_data_of_a_recipe_as_its_run_does(checkpoint, tokenizer, tmp_path, capsys):
    model, _ = checkpoint
    rows = [{"content": f"{row['prompt']}{row['completion']}"} for row in make_examples(12)]
    Dataset.from_list(rows).to_json(tmp_path / "text.jsonl")
    settings = {"dataset_name": str(tmp_path / "text.jsonl"), "dataset_text_field": "content", "max_length": 6}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["scan", model, "--data", str(tmp_path / "recipe.yaml"), "--size", "12", "--json"]
    arguments += ["--criterion", "sensitivity"]
    for extra, length in (([], 6), (["--max-length", "8"], 8)):
        assert main([*arguments, *extra]) == 0
        report = json.loads(capsys.readouterr().out)
        expected = score_layers(
            AutoModelForCausalLM.from_pretrained(model), tokenizer, [{"text": row["content"]} for row in rows],
            metric="loss", args=SFTConfig(max_length=length, bf16=False, use_cpu=True),
        )  # fmt: skip
        assert report["scores"] == pytest.approx(expected, abs=1e-5)
