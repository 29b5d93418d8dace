import pytest
import zoo
from sweep import NAMES, check

from trim_trainer.architectures import ARCHITECTURES

CASES = [(kind, name) for kind, names in NAMES.items() for name in names if name not in zoo.UNBUILT]


def runs_always(kind, name):
    """A third of the sweep: what has a row of its own, and every sixth of the others."""
    model_type = name.partition("@")[0]
    has_row = {model_type, f"{model_type}_text"} & set(ARCHITECTURES)
    return (kind == "causal" and bool(has_row) and "@" not in name) or CASES.index((kind, name)) % 6 == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*case, marks=() if runs_always(*case) else pytest.mark.slow, id="-".join(case)) for case in CASES],
)
def test_trimmed_equals_skipped_equals_reloaded(kind, name, reports):
    report = check(name, kind)
    reports[kind, name] = report
    assert not [f"{outcome.layers}: {outcome.problem}" for outcome in report.outcomes if outcome.problem]
    assert report.refusal or report.is_exact or not report.droppable
