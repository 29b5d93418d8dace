import sys
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
import zoo
from sweep import NAMES, check

from trim_trainer.architectures.fields import FIELDS, HALF_OF
from trim_trainer.architectures.halves import HALVES
from trim_trainer.architectures.table import ARCHITECTURES, Architecture
from trim_trainer.surgery import drop
from trim_trainer.surgery.drop import SurgeryError

CASES = [(kind, name) for kind, names in NAMES.items() for name in names if name not in zoo.UNBUILT]


def runs_always(kind, name):
    """A quarter of the sweep: what has a row of its own, and every eighth of the others."""
    model_type = name.partition("@")[0]
    has_row = {model_type, f"{model_type}_text"} & set(ARCHITECTURES)
    return (kind == "causal" and bool(has_row) and "@" not in name) or CASES.index((kind, name)) % 8 == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*case, marks=() if runs_always(*case) else pytest.mark.slow, id="-".join(case)) for case in CASES],
)
def test_trimmed_equals_skipped_equals_reloaded(kind, name, reports):
    report = check(name, kind)
    reports[kind, name] = report
    assert not [f"{outcome.layers}: {outcome.problem}" for outcome in report.outcomes if outcome.problem]
    assert report.seams is None or report.seams.problem is None
    assert report.refusal or report.is_exact or not report.droppable


@pytest.mark.slow
def test_the_page_says_what_the_sweep_found(reports):
    sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
    from generate_architectures import PAGE, render

    page = PAGE.read_text(encoding="utf-8")
    if f"with transformers {transformers.__version__};" not in page:
        pytest.skip(f"the page was generated with another version than {transformers.__version__}")
    for kind, name in CASES:
        if (kind, name) not in reports:
            reports[kind, name] = check(name, kind)
    assert page == render(reports), "run `python docs/generate_architectures.py`"


def test_the_sweep_notices_a_list_that_is_cut(monkeypatch):
    """The tests above can fail: entries of the first layers instead of those that stay, and no look at the constants."""
    monkeypatch.setitem(FIELDS, "layer_types", lambda values, kept: values[: len(kept.layers)])
    with pytest.raises(SurgeryError, match="depends on the layer's number"):
        check("gemma3_text", "causal")
    monkeypatch.setattr(drop, "_compare_constants", lambda *args: None)
    problems = [outcome.problem for outcome in check("gemma3_text", "causal").outcomes if len(outcome.layers) == 2]
    assert problems and all("trimmed differs from skipped" in problem for problem in problems)


def test_the_sweep_notices_a_norm_in_the_wrong_half(monkeypatch):
    """OLMo 2 has a norm behind attention under the name that Llama gives to the one in front of the MLP."""
    assert check("olmo2", "causal").seams.problem is None
    monkeypatch.setitem(HALVES, "olmo2", HALVES["llama"])
    assert "has post_feedforward_layernorm, and it is not known" in check("olmo2", "causal").seams.problem
    monkeypatch.setitem(
        HALVES, "olmo2", replace(HALVES["llama"], mlp=(*HALVES["llama"].mlp, "post_feedforward_layernorm"))
    )
    assert "joined differs from skipped" in check("olmo2", "causal").seams.problem


def test_the_sweep_notices_a_field_that_follows_the_other_half(monkeypatch):
    monkeypatch.setitem(HALF_OF, "layer_types", "mlp")
    with pytest.raises(SurgeryError, match="depends on the layer's number"):
        check("gemma3_text", "causal")


def test_the_sweep_notices_weights_that_are_not_edited(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "diffllama", Architecture(constants=("lambda_init",)))
    problems = [outcome.problem for outcome in check("diffllama", "causal").outcomes if len(outcome.layers) == 2]
    assert problems and all("trimmed differs from skipped" in problem for problem in problems)
