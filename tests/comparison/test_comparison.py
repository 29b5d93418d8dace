"""Trimming beside its controls: every method trains, the table says what was measured, nothing runs twice."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import forked  # noqa: F401  the server of all processes
import pytest
import torch
import yaml
from datasets import Dataset
from tiny import make_examples, make_model, make_tokenizer

from trim_trainer.cli.main import main
from trim_trainer.comparison import cells
from trim_trainer.comparison.cells import Cell, CellResult, run_cell
from trim_trainer.comparison.comparison import Comparison, steps_in_seconds
from trim_trainer.comparison.methods import METHODS, distinct_methods
from trim_trainer.comparison.picture import STYLES
from trim_trainer.comparison.rows import group
from trim_trainer.comparison.table import tabulate
from trim_trainer.recipe import make_trainer, parse_recipe
from trim_trainer.records.measurement import Measurement, Quality
from trim_trainer.scoring.measuring import measure_model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe on a tiny model and JSON lines, and a file of running text."""
    folder = tmp_path_factory.mktemp("compare")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for first, split in enumerate(("train", "validation", "test")):
        Dataset.from_list(make_examples(24, 100 * first)).to_json(folder / "data" / f"{split}.jsonl")
    (folder / "prose").mkdir()
    (folder / "prose" / "test.txt").write_text("the cat sat on the mat and the dog ran to the red road\n" * 30)
    (folder / "prose.yaml").write_text(yaml.safe_dump({"dataset_name": str(folder / "prose")}))
    settings = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "data"),
        "dataset_calibration_split": "validation",
        "calibration_size": 8,
        "target_ratio": 0.33,
        "sparse_update_ratio": None,
        "max_steps": 4,
        "bf16": False,
        "report_to": "none",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def compared(recipe):
    """The command, once with two methods and two learning rates."""
    torch.set_num_threads(1)
    output = recipe.parent / "out"
    arguments = ["compare", "--config", str(recipe), "--seeds", "0", "1", "--output_dir", str(output)]
    arguments += ["--methods", "full", "progressive", "--learning_rates", "1e-3", "1e-2"]
    arguments += ["--tasks", str(recipe.parent / "prose.yaml"), "--limit", "2"]
    assert main(arguments) == 0
    return arguments, output


def results(output):
    return {
        path.parent.relative_to(output).as_posix(): json.loads(path.read_text())
        for path in output.rglob("result.json")
    }


def test_each_seed_after_the_first_takes_the_best_rate_of_its_method(compared):
    found = results(compared[1])
    for method, depth in (("full", 6), ("progressive", 4)):
        first = {rate: found[f"{method}/depth-{depth}/lr-{rate}/seed-0"] for rate in ("0.001", "0.01")}
        best = min(first, key=lambda rate: first[rate]["selection_loss"])
        assert f"{method}/depth-{depth}/lr-{best}/seed-1" in found
    assert len(found) == 6


@pytest.mark.parametrize(("best", "advice"), [(1e-4, "Add a lower one"), (3e-4, None), (1e-3, "Add a higher one")])
def test_a_best_rate_at_the_end_of_those_tried_is_pointed_out(best, advice, monkeypatch, caplog):
    def run_nothing(comparison, cell):
        return replace(make_result(), cell=cell, selection_loss=float(cell.learning_rate != best))

    monkeypatch.setattr(Comparison, "_cell", run_nothing)
    comparison = Comparison(None, ("progressive",), (4,), (0, 1), (1e-4, 3e-4, 1e-3), (), Path("out"))
    assert [result.cell.learning_rate for result in comparison.run(6)] == [best, best]
    assert (advice in caplog.text) if advice else not caplog.records


def test_a_rate_that_diverged_is_not_the_best(monkeypatch):
    losses = {1e-2: float("nan"), 1e-3: 0.3, 1e-4: 0.4}
    results = {rate: replace(make_result(), selection_loss=loss) for rate, loss in losses.items()}
    results = {rate: replace(found, cell=replace(found.cell, learning_rate=rate)) for rate, found in results.items()}
    monkeypatch.setattr(Comparison, "_cell", lambda self, cell: results[cell.learning_rate])
    compared = Comparison(None, ("progressive",), (4,), (0,), tuple(losses), (), Path())
    assert [result.cell.learning_rate for result in compared.run(6)] == [1e-3]


def test_a_run_that_diverges_names_its_cell(recipe, tmp_path, capsys):
    arguments = ["compare", "--config", str(recipe), "--methods", "progressive", "--seeds", "0"]
    arguments += ["--learning_rates", "1e30"]
    assert main([*arguments, "--output_dir", str(tmp_path), "--scale_learning_rate", "false"]) == 2
    said = capsys.readouterr().err
    assert "lr-1e+30/seed-0: The model returns NaN or infinite numbers" in said
    assert "Or leave 1e+30 out of `--learning_rates`." in said


def test_the_methods_train_on_the_same_tokens_and_reach_their_depth(compared):
    found = results(compared[1]).values()
    assert len({result["num_train_tokens"] for result in found if result["cell"]["seed"] == 0}) == 1
    assert all(result["depth"] == result["cell"]["depth"] for result in found)
    assert all(len(result["dropped"]) == 6 - result["depth"] for result in found)


def test_table_picture_and_numbers_are_saved(compared):
    output = compared[1]
    table = (output / "comparison.md").read_text()
    header, _, *rows = table.splitlines()
    assert "macro-F1" in header and "prose perplexity" in header and len(rows) == 2
    assert "| 6 | full depth | 2 |" in rows[0] and "| 4 | progressive | 2 |" in rows[1]
    assert (output / "comparison.png").stat().st_size > 5000
    assert len(json.loads((output / "comparison.json").read_text())) == 4


def test_cells_are_added_to_a_csv_once(compared, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import results_csv

    _, output = compared
    file = tmp_path / "results.csv"
    for more in ([], [], ["--beside", "4"], ["--beside", "4"]):
        results_csv.main([str(output), "--into", str(file), *more])
    with file.open(encoding="utf-8", newline="") as lines:
        lines = list(csv.DictReader(lines))
    alone, beside = ([line for line in lines if ("4 runs" in line["device"]) == several] for several in (False, True))
    assert len(alone) == len(beside) == len(results(output))
    assert {line["train_seconds"] for line in beside} == {""} != {line["train_seconds"] for line in alone}
    assert {(line["method"], line["dropped"] == "") for line in lines} == {("full", True), ("progressive", False)}
    assert sorted(float(line["loss"]) for line in alone) == pytest.approx(
        sorted(result["quality"]["recipe"]["loss"] for result in results(output).values()), rel=1e-4
    )


def test_steps_of_equal_seconds_leave_room_for_the_calibration():
    full = [replace(make_result("full"), train_seconds=seconds) for seconds in (99.0, 101.0)]
    found = [replace(make_result(), train_seconds=60.0, calibration_seconds=20.0, num_steps=40)]
    assert steps_in_seconds(full, found) == 80  # of 1 s each, in what 20 s leave of 100


def test_equal_seconds_stand_beside_equal_steps(compared, capsys, monkeypatch):
    """Real runs: other steps, planned from the seconds that were measured, each in a row of its own; none runs twice."""
    arguments, output = compared
    monkeypatch.setattr("trim_trainer.comparison.comparison.steps_in_seconds", lambda full, found: 6)
    equal = [*arguments, "--equal_seconds"]
    assert main(equal) == 0
    found = {name: result for name, result in results(output).items() if "equal-seconds" in name}
    assert len(found) == 2 and {result["num_steps"] for result in found.values()} == {6}
    assert all(result["settings"]["max_steps"] == 6 for result in found.values())
    rows = (output / "comparison.md").read_text().splitlines()[2:]
    assert ["| 6 | full depth | 2 |" in rows[0], "| 4 | progressive | 2 |" in rows[1]] == [True, True]
    assert "| 4 | progressive, equal seconds | 2 |" in rows[2] and len(rows) == 3
    monkeypatch.setattr("trim_trainer.comparison.comparison.steps_in_seconds", lambda full, found: 7)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    assert main(equal) == 0  # what was planned once stays
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    assert main([*equal, "--methods", "progressive"]) == 2
    assert "`--equal_seconds` are those of `full`. Add it." in capsys.readouterr().err
    for path in output.rglob("*-equal-seconds/result.json"):
        path.unlink()  # the fixture is shared


def test_every_method_has_a_line_of_its_own():
    assert STYLES.keys() == {name for name, method in METHODS.items() if method.drops != "never"}
    assert len({style for style, _ in STYLES.values()}) == len(STYLES)


def test_what_is_finished_is_not_run_again_and_other_settings_are_refused(compared, capsys):
    arguments, output = compared
    times = {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    assert main(arguments) == 0
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    assert "1e-3" not in capsys.readouterr().err
    assert main([*arguments, "--max_steps", "5"]) == 2
    assert "holds a result of other settings: `max_steps` was 4, now it is 5" in capsys.readouterr().err


def test_an_evaluation_split_that_is_not_there_is_named(recipe, tmp_path, capsys):
    arguments = ["--seeds", "0", "--methods", "full", "--dataset_test_split", "dev", "--output_dir", str(tmp_path)]
    assert main(["compare", "--config", str(recipe), *arguments]) == 2
    assert "`dataset_test_split` is 'dev', but" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [name for name in METHODS if METHODS[name].drops == "before"] + ["progressive_tail", "progressive_sublayers"],
)
def test_every_control_drops_to_the_depth(method, recipe, tmp_path):
    arguments = ["--config", str(recipe), "--methods", method, "--seeds", "0", "--output_dir", str(tmp_path)]
    compensated = ["--compensation_size", "8"] if "compensated" in method else []
    assert main(["compare", *arguments, *compensated]) == 0
    (result,) = results(tmp_path).values()
    assert result["depth"] == 4 and len(result["dropped"]) == 2
    if METHODS[method].criterion == "tail":
        assert sorted(result["dropped"]) == [4, 5]


def test_a_recipe_that_drops_the_last_layers_is_not_compared_with_itself():
    usual = [name for name, method in METHODS.items() if method.is_usual]
    assert set(usual) - set(distinct_methods("sensitivity")) == {"tail_compensated"}
    assert distinct_methods("sensitivity", compensates=True) == tuple(usual)
    assert set(usual) - set(distinct_methods("tail")) == {"progressive_tail", "tail", "tail_compensated"}
    assert set(usual) - set(distinct_methods("tail", True)) == {"progressive_tail", "tail_compensated"}
    assert set(METHODS) - set(usual) == {"progressive_sublayers"}


def test_one_shot_keeps_what_the_recipe_protects(recipe, tmp_path, capsys):
    arguments = ["compare", "--config", str(recipe), "--methods", "one_shot", "--seeds", "0"]
    arguments += ["--output_dir", str(tmp_path), "--protected_layers", "0", "1", "4"]
    assert main(arguments) == 0
    (result,) = results(tmp_path).values()
    assert result["depth"] == 4 and not {0, 1, 4} & set(result["dropped"])
    assert main([*arguments, "--depths", "2"]) == 2
    assert "`protected_layers` names 3 layers, but `target_layers` is 2" in capsys.readouterr().err


def test_compensation_is_a_row_of_its_own(recipe, tmp_path, capsys):
    arguments = ["compare", "--config", str(recipe), "--seeds", "0", "--output_dir", str(tmp_path)]
    arguments += ["--methods", "tail", "tail_compensated"]
    assert main([*arguments, "--compensation_size", "0"]) == 2
    assert "contains tail_compensated, but `compensation_size` is 0" in capsys.readouterr().err
    assert main([*arguments, "--compensation_size", "16"]) == 0
    plain, compensated = (
        results(tmp_path / method / "depth-4")["lr-2e-05/seed-0"] for method in ("tail", "tail_compensated")
    )
    assert plain["dropped"] == compensated["dropped"] == [5, 4]
    assert plain["quality"]["recipe"]["loss"] != compensated["quality"]["recipe"]["loss"]
    assert "one-shot, last layers, compensated" in (tmp_path / "comparison.md").read_text()


def test_a_cell_takes_one_of_several_gpus(recipe, tmp_path, monkeypatch):
    parse = Cell.recipe

    def with_two_gpus(*arguments):
        parsed = parse(*arguments)
        parsed.training_args._n_gpu = 2
        return parsed

    monkeypatch.setattr(Cell, "recipe", with_two_gpus)
    run_cell(Cell("full", 6, 0, 1e-3), parse_recipe(["--config", str(recipe)]), (), tmp_path)
    assert results(tmp_path)["."]["num_train_tokens"] > 0


@pytest.mark.parametrize("method", ["full", "progressive", "tail"])
def test_a_cell_is_scored_without_what_its_optimizer_held(method, recipe, tmp_path, monkeypatch):
    trainers, held = [], []

    def made(*arguments):
        trainers.append(make_trainer(*arguments))
        return trainers[-1]

    def measured(*arguments, **options):
        held.append(len(trainers[0].optimizer.state))
        return measure_model(*arguments, **options)

    monkeypatch.setattr(cells, "make_trainer", made)
    monkeypatch.setattr(cells, "measure_model", measured)
    run_cell(Cell(method, 4, 0, 1e-3), parse_recipe(["--config", str(recipe)]), (), tmp_path)
    assert held == [0] and results(tmp_path)["."]["num_steps"] == 4


def test_the_untrained_model_is_one_cell_for_all_seeds_and_rates(recipe, tmp_path):
    arguments = ["compare", "--config", str(recipe), "--methods", "untrained", "full", "--seeds", "0", "1"]
    assert main([*arguments, "--learning-rates", "1e-3", "--output-dir", str(tmp_path)]) == 0
    found = results(tmp_path)
    (name,) = (name for name in found if name.startswith("untrained"))
    untrained, trained = found[name], found["full/depth-6/lr-0.001/seed-0"]
    assert len(found) == 3 and untrained["num_train_tokens"] == untrained["train_seconds"] == 0
    assert untrained["quality"]["recipe"]["loss"] > trained["quality"]["recipe"]["loss"]
    assert untrained["num_parameters"] == trained["num_parameters"]
    assert "| 6 | untrained | 1 |" in (tmp_path / "comparison.md").read_text()


def make_result(method="progressive", seed=0, **quality):
    cell = Cell(method, 6 if method == "full" else 4, seed, 1e-3)
    speed = {"decode_tokens_per_second": 1.0, "prefill_tokens_per_second": 1.0, "device": "x"}
    quality = {"recipe": Quality(**{"num_examples": 100, "num_tokens": 100, "loss": 1.0} | quality)}
    numbers = {"train_seconds": 1.0, "calibration_seconds": 0.5, "num_train_tokens": 10, "train_peak_bytes": 1}
    measured = Measurement(depth=4, num_parameters=1, num_bytes=4, quality=quality, **speed)
    return CellResult(
        cell=cell, settings={}, dropped=[1, 2], selection_loss=1.0, num_steps=4, measured=measured, **numbers
    )


def test_an_interval_over_seeds_is_students_t():
    """Against scipy's own interval: mean 0.6, standard error 0.05773, t(0.975, 2) 4.3027."""
    one = make_result(accuracy=0.5)
    three = [make_result(seed=seed, accuracy=value) for seed, value in enumerate((0.5, 0.6, 0.7))]
    (row,) = group(three)
    assert row.quality("recipe", "accuracy") == pytest.approx((0.6, 0.35159, 0.84841), abs=1e-4)
    (row,) = group(three[::2])  # t(0.975, 1) is 12.7: 0.6 ± 1.27
    assert row.quality("recipe", "accuracy") == (pytest.approx(0.6), 0.0, 1.0)
    (row,) = group([one])
    assert row.quality("recipe", "accuracy") == pytest.approx((0.5, 0.4038, 0.5962), abs=1e-3)  # Wilson, n = 100
    assert row.quality("recipe", "macro_f1") is None
    header, body = tabulate([row])
    assert "macro-F1" not in header and "0.500 (0.404–0.596)" in body[0]


def test_a_difference_between_methods_is_paired_by_seed():
    """Of 0.05 and 0.07 in two seeds, whose accuracies are 0.2 apart; a third seed has one method only."""
    deep = [make_result("full", seed, accuracy=value) for seed, value in enumerate((0.5, 0.7, 0.9))]
    shallow = [make_result("progressive", seed, accuracy=value) for seed, value in enumerate((0.45, 0.63))]
    full, progressive = group([*deep, *shallow])
    assert progressive.difference(full, "recipe", "accuracy") == pytest.approx((-0.06, -0.187, 0.067), abs=1e-3)
    header, body = tabulate([full, progressive])
    place = header.index("points over full depth")
    assert [line[place] for line in body] == ["", "-6.0 (-18.7 to +6.7)"]
    header, body = tabulate(group([deep[0], shallow[0]]))
    assert body[1][header.index("points over full depth")] == "-5.0"  # one seed has no interval
    assert "points over full depth" not in tabulate(group([deep[2], shallow[0]]))[0]


def test_the_page_of_results_has_the_tables_of_its_runs(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    from generate_results import PAGES, TABLES, render

    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert pages == [render(page) for page in pages], "run `python docs/generate_results.py`"
    results, faster, sublayers, vocabulary, adapters, readme = pages
    shown = {name: results for name in TABLES} | {
        "headline": readme,
        "sublayers": sublayers,
        "fewer_tokens": vocabulary,
        "lora": adapters,
    }
    shown |= dict.fromkeys(("speeds", "halves", "halves_1b", "fewer_tokens_speeds"), faster)
    assert all(f"<!-- table: {name} -->\n| " in page for name, page in shown.items())


def test_fewer_tokens_are_refused_where_a_control_would_have_all(recipe, tmp_path, capsys):
    options = ["--vocab_size", "24", "--methods", "full", "progressive", "--output_dir", str(tmp_path)]
    assert main(["compare", "--config", str(recipe), *options]) == 2
    assert "`vocab_size` is 24, but full would have all tokens" in capsys.readouterr().err


def test_a_cell_leaves_out_what_belongs_to_the_run_of_a_recipe(recipe, tmp_path):
    """Depths on the way, which train on behind it, evaluation on the way, the best checkpoint, the Hub."""
    settings = yaml.safe_load(recipe.read_text()) | {
        "target_layers": 4, "target_ratio": None, "save_depths": [5], "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
        "save_steps": 2, "load_best_model_at_end": True, "push_to_hub": True, "eval_on_start": True,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["--seeds", "0", "--methods", "progressive", "--output_dir", str(tmp_path / "out")]
    assert main(["compare", "--config", str(tmp_path / "recipe.yaml"), *arguments]) == 0
    (result,) = results(tmp_path / "out").values()
    assert result["num_steps"] == 4 and not list((tmp_path / "out").rglob("depth-5"))


def test_a_depth_that_cannot_be_reached_is_refused_before_full_depth_trains(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trim_trainer.comparison.comparison.run_alone", lambda *_: pytest.fail("a cell is run"))
    arguments = ["--methods", "full", "progressive", "--depths", "4", "2", "--protected_layers", "0", "1", "2"]
    assert main(["compare", "--config", str(recipe), *arguments, "--output_dir", str(tmp_path)]) == 2
    assert "`protected_layers` names 3 layers, but `target_layers` is 2" in capsys.readouterr().err
    arguments[2] = "one_shot"  # which drops before it trains
    assert main(["compare", "--config", str(recipe), *arguments, "--output_dir", str(tmp_path)]) == 2
    assert "`protected_layers` names 3 layers, but `target_layers` is 2" in capsys.readouterr().err
    arguments[2] = "tail"  # which protects nothing
    with pytest.raises(pytest.fail.Exception, match="a cell is run"):
        main(["compare", "--config", str(recipe), *arguments, "--output_dir", str(tmp_path)])


def test_an_empty_list_is_a_setting_of_its_own(recipe, tmp_path):
    arguments = ["--config", str(recipe), "--output_dir", str(tmp_path)]
    assert parse_recipe([*arguments, "--protected_layers"]).settings["protected_layers"] == []
    assert "protected_layers" not in parse_recipe(arguments).settings
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"protected_layers": []})
    )
    parsed = parse_recipe(["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path)])
    assert parsed.training_args.protected_layers == parsed.settings["protected_layers"] == []
    none = parse_recipe(["--config", str(tmp_path / "recipe.yaml"), "--output_dir", "o", "--protected_layers", "none"])
    assert none.training_args.protected_layers is None


def test_bytes_that_are_not_known_leave_their_place_empty():
    """As of quantized weights."""
    result = make_result(accuracy=0.5)
    measured = replace(result.measured, num_bytes=None, decode_tokens_per_second=None)
    header, (line,) = tabulate(group([replace(result, measured=measured)]))
    assert "weights" not in header and "decode" not in header and "1/s" in line


def test_a_result_of_other_examples_is_not_taken_for_one_of_these(recipe, tmp_path, capsys):
    task, arguments = str(recipe.parent / "prose.yaml"), ["--methods", "full", "--seeds", "0"]
    arguments = ["compare", "--config", str(recipe), *arguments, "--output_dir", str(tmp_path), "--tasks", task]
    assert main([*arguments, "--limit", "2"]) == 0
    assert main([*arguments, "--limit", "3"]) == 2
    assert "`limit` of the task 'prose' was 2, now it is 3" in capsys.readouterr().err


def test_rates_that_are_chosen_by_what_layers_are_chosen_on_are_pointed_out(recipe, caplog):
    held_out = parse_recipe(["--config", str(recipe), "--output_dir", "o"])
    for parsed, is_said in ((held_out, False), (without_split(held_out), True)):
        caplog.clear()
        Comparison(parsed, ("full",), (4,), (0,), (1e-3, 1e-4), (), Path()).check()
        assert ("Without `dataset_calibration_split`" in caplog.text) == is_said


def without_split(recipe):
    return replace(recipe, script_args=replace(recipe.script_args, dataset_calibration_split=None))
