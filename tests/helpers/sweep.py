"""What dropping layers does to one tiny model of the zoo, against a truth that needs no surgery."""

import copy
import tempfile
from dataclasses import dataclass, replace

import torch
import zoo
from seams import Seams, check_seams
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from trim_trainer import droppable_layers, verify_checkpoint
from trim_trainer.architectures.configs import num_layers
from trim_trainer.architectures.errors import LayerConstraintError, UnsupportedArchitectureError
from trim_trainer.architectures.halves import find_halves
from trim_trainer.architectures.modules import find_stacks
from trim_trainer.surgery.drop import drop_layers
from trim_trainer.surgery.full_depth import full_depth_twin

AUTO = {"causal": AutoModelForCausalLM, "image-text": AutoModelForImageTextToText}
NAMES = {"causal": zoo.CAUSAL, "image-text": zoo.IMAGE_TEXT}
NUM_SEAMS = zoo.NUM_LAYERS - 1
DROP_SETS = ((1, 4), (0, 5), (2, 3))
# Folded constants are exact up to the epsilon of a norm; everything else is equal to the last bits.
TOLERANCE, WIDE_TOLERANCE = 2e-5, {"rwkv@rescale": 1e-3}


@dataclass(frozen=True)
class Outcome:
    """One drop set: `refusal` says why it was refused, `problem` what was wrong with the result; both None: exact.

    `fields` of the config and `weights` that were rewritten, beside the depth and what went with the layers.
    """

    layers: tuple[int, ...]
    refusal: str | None = None
    problem: str | None = None
    fields: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()

    @property
    def is_exact(self):
        return self.refusal is None and self.problem is None


@dataclass(frozen=True)
class Report:
    """One architecture. `refusal`: no layer of it can be dropped at all."""

    name: str
    model_class: str
    droppable: tuple[int, ...] = ()
    seams: Seams | None = None  # None: its layers have no halves to join, see `no_seams`
    no_seams: str | None = None
    outcomes: tuple[Outcome, ...] = ()
    refusal: str | None = None

    @property
    def is_exact(self):
        """Every drop set that is allowed gives the same function, in memory and reloaded; there is one at least."""
        is_exact = any(o.is_exact for o in self.outcomes) and not any(o.problem for o in self.outcomes)
        return is_exact and (self.seams is None or self.seams.problem is None)


def facts(kind):
    """The file of the zoo that says which models do not survive saving or cannot generate even untrimmed."""
    return {"causal": zoo.causal, "image-text": zoo.image_text}[kind]


def check(name, kind):
    """Drop each of `DROP_SETS` from the model `name`; where one is refused, also a set that is allowed."""
    model = zoo.make(name, AUTO[kind])
    inputs = zoo.make_inputs(model, name)
    report = Report(name, type(model).__name__)
    try:
        report = replace(report, droppable=droppable_layers(model))
    except UnsupportedArchitectureError as error:
        assert_refused(model, inputs, (1,), UnsupportedArchitectureError)
        return replace(report, refusal=str(error))
    report = replace(report, **try_seams(name, kind, model, inputs))
    sets = [*DROP_SETS, *allowed_sets(model, report.droppable)]
    return replace(report, outcomes=tuple(try_drop(name, kind, model, inputs, layers) for layers in sets))


def try_seams(name, kind, model, inputs):
    """What the report says of seams."""
    try:
        find_halves(model.config)
    except UnsupportedArchitectureError as error:
        return {"no_seams": str(error)}

    def differ(one, other):
        far = (one - other).abs().max()
        return None if far <= WIDE_TOLERANCE.get(name, TOLERANCE) else f"joined differs from skipped by {far:.2g}"

    def reload(trimmed, expected):
        with tempfile.TemporaryDirectory() as folder:
            trimmed.save_pretrained(folder)
            loaded, info = AUTO[kind].from_pretrained(folder, output_loading_info=True)
        return find_problem(name, kind, trimmed, loaded, info, expected, inputs)

    return {"seams": check_seams(model, inputs, differ, reload)}


def allowed_sets(model, droppable):
    """Every layer that can go alone; then layers that can go together, as many as two."""
    sets = [(layer,) for layer in droppable]
    for first in droppable[:1]:
        sets += [(first, second) for second in droppable_layers(model, (first,))[-1:]]
    return [layers for layers in sets if tuple(sorted(layers)) not in DROP_SETS]


def try_drop(name, kind, model, inputs, layers):
    """Drop `layers` from a copy and compare three logits: layers skipped, trimmed in memory, reloaded."""
    trimmed = copy.deepcopy(model)
    try:
        drop_layers(trimmed, layers)
    except LayerConstraintError as error:
        assert_refused(model, inputs, layers, LayerConstraintError)
        return Outcome(layers, refusal=str(error))
    if len(layers) == 1:  # rehearsed only
        return Outcome(layers)
    outcome = Outcome(
        layers,
        fields=changed_fields(model.config.to_dict(), trimmed.config.to_dict()),
        weights=changed_weights(model, trimmed, layers),
    )
    expected = zoo.logits(with_layers_skipped(name, model, layers), inputs)
    with tempfile.TemporaryDirectory() as folder:
        trimmed.save_pretrained(folder)
        if layers == DROP_SETS[0] and can_generate(name, kind, inputs):
            verify_checkpoint(folder, trimmed)
            generate_at_full_depth(model, trimmed, inputs)
        loaded, info = AUTO[kind].from_pretrained(folder, output_loading_info=True)
    return replace(outcome, problem=find_problem(name, kind, trimmed, loaded, info, expected, inputs))


def find_problem(name, kind, trimmed, loaded, info, expected, inputs):
    """What is wrong with a trimmed model or with its checkpoint; None: nothing."""
    if any(info.values()):
        return f"keys { ({kind: list(keys)[:3] for kind, keys in info.items() if keys}) }"
    ours, theirs = zoo.logits(trimmed, inputs), zoo.logits(loaded, inputs)
    if not (expected - ours).abs().max() <= WIDE_TOLERANCE.get(name, TOLERANCE):
        return f"trimmed differs from skipped by {(expected - ours).abs().max():.2g}"
    if not (ours - theirs).abs().max() <= 1e-6:  # equal tensors, differently aligned
        return f"reloaded differs from trimmed by {(ours - theirs).abs().max():.2g}"
    if can_generate(name, kind, inputs) and not torch.equal(generate(trimmed, inputs), generate(loaded, inputs)):
        return "cached generation differs"
    return None


def can_generate(name, kind, inputs):
    """Whether the untouched model generates from text alone."""
    return set(inputs) == {"input_ids"} and name not in facts(kind).NO_CACHE


@torch.no_grad()
def generate(model, inputs):
    """Eight greedy tokens with the KV cache."""
    return model.generate(
        **inputs, do_sample=False, min_new_tokens=8, max_new_tokens=8, pad_token_id=0, use_cache=True
    )


def generate_at_full_depth(model, trimmed, inputs):
    """The twin that is timed beside a trimmed model runs, where there is one."""
    kept = [layer for layer in range(num_layers(model.config)) if layer not in DROP_SETS[0]]
    if twin := full_depth_twin(trimmed, model.config, kept):
        generate(twin, inputs)


def assert_refused(model, inputs, layers, error):
    """The refusal changes nothing."""
    refused = copy.deepcopy(model)
    fields = refused.config.to_dict()
    try:
        drop_layers(refused, layers)
    except error:
        assert refused.config.to_dict() == fields
        assert torch.equal(zoo.logits(refused, inputs), zoo.logits(copy.deepcopy(model), inputs))
    else:
        raise AssertionError(f"{layers} should have been refused")


def changed_fields(before, after):
    """Names of the fields that differ, those of composite configs by themselves."""
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    parts = {name for name in changed if isinstance(before.get(name), dict) and "model_type" in before[name]}
    return frozenset(changed - parts).union(*(changed_fields(before[name], after[name]) for name in parts))


def changed_weights(model, trimmed, layers):
    """Last two parts of the names of the parameters that are not what they were."""
    old, new = model.state_dict(), trimmed.state_dict()
    stacks = find_stacks(model)
    kept = [layer for layer in range(len(next(iter(stacks.values())))) if layer not in layers]
    changed = set()
    for name, tensor in new.items():
        source = name
        for stack in stacks:
            if name.startswith(f"{stack}."):
                number, _, rest = name.removeprefix(f"{stack}.").partition(".")
                source = f"{stack}.{kept[int(number)]}.{rest}"
        if source not in old or old[source].shape != tensor.shape or not torch.equal(old[source], tensor):
            changed.add(".".join(name.split(".")[-2:]))
    return frozenset(changed)


def summarize(reports):
    """Counts per Auto mapping, of the names in it without their variants."""
    for kind, names in NAMES.items():
        built = [name for name in names if "@" not in name and name not in zoo.UNBUILT]
        tried = [reports[kind, name] for name in built if (kind, name) in reports]
        exact = [report for report in tried if report.is_exact]
        everywhere = [report for report in exact if all(o.is_exact for o in report.outcomes)]
        refused = [report.name for report in tried if report.refusal or not report.droppable]
        wrong = [report.name for report in tried if report not in exact and report.name not in refused]
        num_names = sum("@" not in name for name in names)
        yield (
            f"{kind}: {num_names} architectures, {len(built)} can be built, {len(tried)} tried: {len(exact)} exact on every "
            f"allowed drop set ({len(everywhere)} of them allow all), {len(refused)} refused"
            f"{' (' + ', '.join(refused) + ')' if refused else ''}, {len(wrong)} wrong{': ' + ', '.join(wrong) if wrong else ''}"
        )
    tried = [report for (_, name), report in reports.items() if report.seams or report.no_seams]
    joining = [report for report in tried if report.seams]
    wrong = [report.name for report in joining if report.seams.problem]
    yield (
        f"seams, of all these and their variants: {len(joining)} of {len(tried)} join halves, {len(joining) - len(wrong)} of them "
        f"exactly on every seam that can go, {len(wrong)} wrong{': ' + ', '.join(wrong) if wrong else ''}"
    )
    variants = [report for (_, name), report in reports.items() if "@" in name]
    yield f"variants of their configs: {len(variants)} tried, {sum(r.is_exact for r in variants)} exact"
    refusals = sum(o.refusal is not None for report in reports.values() for o in report.outcomes)
    yield f"drop sets: {sum(len(r.outcomes) for r in reports.values())} tried, {refusals} refused with the model unchanged"


# The truth: the untouched model, in which some layers return what they are given.


def with_layers_skipped(name, model, layers):
    """A copy whose `layers` hand on their input."""
    model = copy.deepcopy(model)
    for stack_name, stack in find_stacks(model).items():
        for layer in layers:
            part = stack_name.rpartition(".")[2]
            skip = SKIPS.get(part if model.config.model_type == "xlm" else model.config.model_type, hand_on)
            stack[layer].forward = skip(stack[layer].forward)
    return model


def hand_on(forward):
    """The hidden state leaves the layer as it came; what else the layer returns stays."""

    def skipped(hidden, *args, **kwargs):
        output = forward(hidden.clone(), *args, **kwargs)
        return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden

    return skipped


def hand_on_router_state(forward):
    """Zaya's layers also hand a router state to each other."""
    return lambda hidden, state=None, *args, **kwargs: (hidden, kwargs.get("prev_router_hidden_states", state))


def hand_on_both_streams(forward):
    """Reformer's layers have two residual streams."""

    def skipped(prev_attn_output, hidden_states, *args, **kwargs):
        output = forward(prev_attn_output, hidden_states, *args, **kwargs)
        return output._replace(attn_output=prev_attn_output, hidden_states=hidden_states)

    return skipped


# XLM keeps the parts of a layer in lists of their own: its branches add nothing and its norms do nothing.
SKIPS = {
    "zaya": hand_on_router_state,
    "reformer": hand_on_both_streams,
    "attentions": lambda forward: lambda hidden, *args, **kwargs: (torch.zeros_like(hidden),),
    "ffns": lambda forward: torch.zeros_like,
    "layer_norm1": lambda forward: lambda hidden: hidden,
    "layer_norm2": lambda forward: lambda hidden: hidden,
}
