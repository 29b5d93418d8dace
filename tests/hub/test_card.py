import json
import re
from dataclasses import replace

import jinja2
import pytest
import yaml
from histories import make_history

from trim_trainer.hub.card import Member, render_card
from trim_trainer.records.facts import CardFacts
from trim_trainer.records.history import TrimHistory
from trim_trainer.records.measurement import EVALUATION, CacheSize, Measurement, Quality, SpeedRatio
from trim_trainer.records.settings import without_local_paths
from trim_trainer.training.card_files import write_card

FACTS = CardFacts(
    model_name="tiny-4L",
    num_train_examples=64,
    recipe={"model_name_or_path": "org/base", "target_layers": 4},
    versions={"trl": "1.16.0"},
    tags=("trl", "trimmed"),
    base_model="org/base",
    license="apache-2.0",
    dataset_name="org/data",
)


def measured(depth, quality=None, **facts):
    quality = {} if quality is None else {EVALUATION: Quality(**{"num_tokens": None, "loss": None} | quality)}
    return Measurement(depth, depth * 1000, quality=quality, **facts)


def whole_history():
    quality, where = (
        {"num_examples": 24, "majority_accuracy": 0.3, "loss": 1.5},
        {"device": "a CPU", "dtype": "float32"},
    )
    before = measured(6, quality | {"accuracy": 0.4}, decode_tokens_per_second=10.0, **where)
    ratio = SpeedRatio(ratio=1.4, low=1.33, high=1.41, num_pairs=11)
    speed = {"decode_tokens_per_second": 14.0, "decode_ratio": ratio}
    after = measured(4, quality | {"accuracy": 0.875}, **speed, **where)
    return replace(make_history(), untrimmed=before).add(after)


def test_the_card_says_what_serving_needs():
    history = whole_history()
    assert "KV cache" not in render_card(history, FACTS)  # not measured
    before, after = (
        replace(each, num_bytes=depth * 10**9, cache=CacheSize(((depth * 1000, None), (depth * 500, 1024)), 4096))
        for each, depth in ((history.untrimmed, 6), (history.trimmed, 4))
    )
    card = render_card(replace(history, untrimmed=before).add(after), FACTS)
    assert "| KV cache per token (of a sequence of 2,048) | 7,502 bytes | 5,002 bytes |" in card
    assert "| such sequences beside the weights in 24 GB | 1,171 | 1,952 |" in card
    assert "as Transformers keeps them in float32" in card


def head_of(card):
    return yaml.safe_load(card.split("---")[1])


def test_the_card_says_what_was_measured():
    card = render_card(whole_history(), FACTS)
    for fact in ("40.0 % before training → 87.5 % with 4 layers (n = 24)", "a CPU"):
        assert fact in card
    assert "| 10 | 3 | 0.0000 | 0.9000 | 0.8500 | 5 | 20.0 |" in card
    assert "| 20 | 1 | 0.1000 | 0.8800 | 0.8000 | 4 | 22.0 |" in card
    assert "Layers kept: 0, 2, 4, 5." in card
    head = head_of(card)
    assert head["base_model"] == "org/base" and head["license"] == "apache-2.0" and head["datasets"] == ["org/data"]
    metric = head["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.875)


def test_a_ratio_of_speeds_stands_with_its_spread():
    card = render_card(whole_history(), FACTS)
    assert "4 layers (n = 24), 1.40× the tokens per second (1.33–1.41, 11 pairs in turns)." in card
    assert "| 10.0 | 14.0 |" in card
    assert (
        "the pair of runs with the median ratio, 1.40× (1.33–1.41, 11 pairs in turns); the range is its 95 %" in card
    )


def with_ratio(ratio):
    history = whole_history()
    return history.add(replace(history.trimmed, decode_ratio=ratio))


def test_where_the_machine_was_too_busy_the_card_says_so_and_states_no_speed():
    noisy = SpeedRatio(ratio=0.82, low=0.55, high=1.6, num_pairs=31)
    card = render_card(with_ratio(noisy), FACTS)
    assert "the machine was too busy to tell: 31 pairs of runs in turns differ too much." in card
    for absent in ("×", "0.82", "1.40", "| 10.0 | 14.0 |", "Tokens per second are those of"):
        assert absent not in card


def test_speeds_that_were_not_timed_in_turns_have_no_ratio():
    """Histories of earlier versions, and runs whose layers are sharded over processes."""
    history = with_ratio(None)
    plain = json.loads(history.to_json())
    del plain["measurements"][0]["decode_ratio"]
    earlier = TrimHistory.from_json(json.dumps(plain))
    assert earlier == history
    card = render_card(earlier, FACTS)
    assert "×" not in card and "1.40" not in card
    assert "| 10.0 | 14.0 |" in card and "not timed in pairs of runs in turns, so no ratio of them is stated" in card


def test_each_depth_of_a_family_has_its_own_ratio():
    busy, clear = SpeedRatio(1.5, 0.9, 2.5, 31), SpeedRatio(1.4, 1.33, 1.41, 11)
    speeds = [{}, {"decode_ratio": busy}, {"decode_ratio": clear}]
    family = tuple(
        Member(f"depth-{depth}", measured(depth, decode_tokens_per_second=depth * 1.5, **speed), depth, 1000)
        for depth, speed in zip((6, 5, 4), speeds, strict=True)
    )
    rows = [
        line
        for line in render_card(whole_history(), FACTS, "me/model", family=family).splitlines()
        if "`depth-" in line
    ]
    assert "| 9.0 |" in rows[0]
    assert "too busy to tell" in rows[1] and "7.5" not in rows[1] and "×" not in rows[1]
    assert "| 6.0 (1.40× (1.33–1.41, 11 pairs in turns)) |" in rows[2]


def test_what_was_not_measured_is_not_printed():
    history = TrimHistory(6, 4, "sensitivity", "accuracy", 12)
    card = render_card(history, CardFacts("tiny", None, {}, {}))
    assert not re.search(r"\bNone\b", card)
    for absent in ("Before and after", "%", "tokens", "Trained on", "trim_metric.png", "base_model", "model-index"):
        assert absent not in card.split("## Citation")[0], absent
    without_speed = make_history().add(measured(4, {"accuracy": 0.5, "num_examples": 3}))
    assert "× the tokens per second" not in render_card(without_speed, FACTS)


def test_a_measurement_of_another_depth_is_not_passed_off_as_this_one():
    history = make_history().add(measured(5, {"accuracy": 0.99, "num_examples": 9}))
    card = render_card(history, FACTS)
    assert "99" not in card.split("## Citation")[0]
    assert "model-index" not in head_of(card)


def test_a_local_path_is_no_hub_data_set(tmp_path):
    facts = CardFacts("tiny", 1, {}, {}, dataset_name=str(tmp_path))
    assert "datasets" not in head_of(render_card(whole_history(), facts))


def test_what_is_shared_names_no_place_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "news" / "big").mkdir(parents=True)
    recipe = {
        "model_name_or_path": "org/base",
        "dataset_name": "news/big",
        "distill_from": str(tmp_path / "teacher"),
        "deepspeed": "/etc/zero3.json",
        "seed": 1,
        "importance": "news",  # no place, though there is a folder of that name
        "doc_to_text": "/no_think {{question}}",
    }
    shared = without_local_paths(recipe)
    assert shared == recipe | {"dataset_name": "./big", "distill_from": "./teacher", "deepspeed": "./zero3.json"}
    card = render_card(whole_history(), replace(FACTS, dataset_name=shared["dataset_name"], recipe=shared))
    assert "datasets" not in head_of(card) and "`./big`" in card


def test_a_misspelt_variable_in_the_template_is_an_error(monkeypatch):
    loader = jinja2.DictLoader({"model_card.md": "{{ fatcs.model_name }}"})
    monkeypatch.setattr(jinja2, "PackageLoader", lambda package: loader)
    with pytest.raises(jinja2.UndefinedError):
        render_card(whole_history(), FACTS)


def test_recipe_and_plots_stand_beside_the_card(tmp_path):
    write_card(tmp_path, whole_history(), FACTS)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == FACTS.recipe
    card = (tmp_path / "README.md").read_text()
    for name in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert (tmp_path / name).stat().st_size > 1000
    assert len(re.findall(r"!\[", card)) == 2


def test_each_evaluation_set_has_its_figures():
    def of(depth, easy, hard):
        quality = {
            "easy": Quality(24, 30, 1.5, easy),
            "hard": Quality(10, 12, 2.5, hard),
            "prose": Quality(5, 50, 3.25),
        }
        return Measurement(depth, depth * 1000, quality=quality)

    history = replace(make_history(), untrimmed=of(6, 0.4, 0.2)).add(of(4, 0.875, 0.3))
    family = tuple(Member(f"depth-{depth}", of(depth, 0.5, 0.1), depth, 1000) for depth in (5, 4))
    card = render_card(history, FACTS, "me/tiny", family=family)
    assert (
        ": accuracy on `easy` 40.0 % before training → 87.5 % with 4 layers (n = 24), accuracy on `hard` 20.0 % before "
        "training → 30.0 % with 4 layers (n = 10)."
    ) in card
    assert "| loss on `prose` (nats per scored token) | 3.2500 | 3.2500 |" in card
    assert "accuracy on `prose`" not in card
    for line in (
        "| accuracy on `hard` (95 % interval, n = 10) | 20.0 % (",
        "| `depth-5` | 5 | 5,000 | `easy`: 50.0 % (",
    ):
        assert line in card
    metrics = head_of(card)["model-index"][0]["results"][0]["metrics"]
    found = [(metric["name"], metric["value"]) for metric in metrics]
    assert found == [("accuracy on easy (n = 24)", 0.875), ("accuracy on hard (n = 10)", 0.3)]


def test_an_image_text_model_is_loaded_as_one():
    card = render_card(whole_history(), replace(FACTS, sees_images=True), "me/tiny")
    assert head_of(card)["pipeline_tag"] == "image-text-to-text"
    assert 'model = AutoModelForImageTextToText.from_pretrained("me/tiny")' in card
    assert 'processor = AutoProcessor.from_pretrained("me/tiny")' in card
    assert "AutoModelForCausalLM" not in card and "AutoTokenizer" not in card
    text = render_card(whole_history(), FACTS, "me/tiny")
    assert 'tokenizer = AutoTokenizer.from_pretrained("me/tiny")' in text and "AutoProcessor" not in text
