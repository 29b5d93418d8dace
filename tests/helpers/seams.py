"""What joining halves of layers does to one tiny model of the zoo, against a truth that needs no surgery and knows no rows."""

import copy
from dataclasses import dataclass

import torch
import zoo

from trim_trainer.architectures.configs import text_config
from trim_trainer.architectures.droppable import droppable_cuts
from trim_trainer.architectures.errors import LayerConstraintError
from trim_trainer.architectures.kept import Seam
from trim_trainer.architectures.modules import find_stacks
from trim_trainer.surgery.drop import drop_layers


@dataclass(frozen=True)
class Seams:
    """Seams that can go, each alone, and what is wrong with one of the results; None: every one is exact."""

    droppable: tuple[Seam, ...]
    problem: str | None = None


def check_seams(model, inputs, logits_differ, reload) -> Seams:
    """Drop each seam that can go, then several things together, and compare with the model whose halves are skipped.

    Args:
        model: The untouched one.
        inputs: Of its forward pass.
        logits_differ: Says how far two logits may be apart.
        reload: Saves a trimmed model, loads it and says what is wrong with that, or None.
    """
    cuts = droppable_cuts(model, with_seams=True)
    seams = tuple(cut for cut in cuts if isinstance(cut, Seam))
    problem = check_skips(model, inputs)
    for number in range(len(next(iter(find_stacks(model).values()))) - 1):
        if problem is None:
            problem = try_seam(model, inputs, Seam(number), Seam(number) in seams, logits_differ)
    together = choose_together(model)
    if problem is None and together:
        trimmed = drop(model, together)
        expected = zoo.logits(with_skipped(model, together), inputs)
        problem = logits_differ(expected, zoo.logits(trimmed, inputs)) or reload(trimmed, expected)
        problem = problem and f"{', '.join(map(str, together))}: {problem}"
    return Seams(seams, problem)


def try_seam(model, inputs, seam, is_allowed, logits_differ):
    """What is wrong with the model without one seam; None: nothing."""
    try:
        trimmed = drop(model, [seam])
    except LayerConstraintError as error:
        return f"{seam}: {error}" if is_allowed else None
    if not is_allowed:
        return f"{seam} should have been refused"
    problem = logits_differ(zoo.logits(with_skipped(model, [seam]), inputs), zoo.logits(trimmed, inputs))
    return problem and f"{seam}: {problem}"


def choose_together(model):
    """Two seams and a layer that can go together, as far as they can, a seam first."""
    chosen = ()
    for wanted in (Seam, Seam, int):
        left = [cut for cut in droppable_cuts(model, chosen, with_seams=True) if isinstance(cut, wanted)]
        chosen += tuple(left[len(left) // 2 :][:1])
    return chosen if any(isinstance(cut, Seam) for cut in chosen) else ()


def drop(model, cuts):
    """A copy without these."""
    seams = [(cut.front, cut.back) for cut in cuts if isinstance(cut, Seam)]
    return drop_layers(copy.deepcopy(model), [cut for cut in cuts if not isinstance(cut, Seam)], seams)


# The truth: the untouched model, in which halves add nothing. One rule a module, by the model type where others differ.


def zeros(module, args, output):
    """It adds nothing."""
    if isinstance(output, tuple | list):
        return type(output)(torch.zeros_like(e) if torch.is_tensor(e) and e.is_floating_point() else e for e in output)
    return torch.zeros_like(output)


def hand_on(module, args, output):
    """It returns what it was given."""
    return (args[0], *output[1:]) if isinstance(output, tuple | list) else args[0]


def hand_residual_on(module, args, output):
    """It is given the residual to add, and returns it."""
    return (args[1], *output[1:]) if isinstance(output, tuple | list) else args[1]


ONE = "a scale that is one"
MIXERS = (
    "self_attn linear_attn mamba attention attn conv self_attention temporal_block multi_head_attention mlstm_layer"
)
MLPS = "mlp feed_forward block_sparse_moe shared_mlp ffn mlp_block fc2"
USUAL = (dict.fromkeys(MIXERS.split(), zeros), dict.fromkeys(MLPS.split(), zeros))
BERT = ({"attention": hand_on}, {"output": hand_residual_on})
FAIRSEQ = (  # the norm behind a half, where there is one, does nothing
    USUAL[0] | {"self_attn_layer_norm": hand_on},
    USUAL[1] | {"final_layer_norm": hand_on, "feed_forward_layer_norm": hand_on},
)
SCALAR = (USUAL[0], USUAL[1] | {"layer_scalar": ONE})
RULES = {
    **dict.fromkeys(
        "bert bert-generation big_bird camembert data2vec-text electra ernie git megatron-bert rembert roberta "
        "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl".split(),
        BERT,
    ),
    **dict.fromkeys(
        "bart blenderbot-small marian mvp plbart prophetnet trocr opt".split(),
        FAIRSEQ,
    ),
    "xmod": (BERT[0], BERT[1] | {"output.LayerNorm": hand_on}),
    "muse_spark_text": (
        USUAL[0] | {"post_attention_residual_gate": hand_on},
        USUAL[1] | {"post_feedforward_residual_gate": hand_on},
    ),
    "openai-gpt": (USUAL[0] | {"ln_1": hand_on}, USUAL[1] | {"ln_2": hand_on}),
    "xlnet": ({"rel_attn": hand_on}, {"ff": hand_on}),
    "cpmant": ({"self_att": hand_on}, {"ffn": hand_on}),
    "bloom": ({"self_attention": hand_residual_on}, {"mlp": hand_residual_on}),
    "mpt": (USUAL[0], {"ffn": hand_residual_on}),
    "doge": (USUAL[0] | {"input_residual": ONE}, USUAL[1] | {"post_attention_residual": ONE}),
    "minimax": (
        USUAL[0] | {"input_layernorm": hand_on, "attn_alpha_factor": ONE},
        USUAL[1] | {"post_attention_layernorm": hand_on, "mlp_alpha_factor": ONE},
    ),
    "gemma4_text": SCALAR,
    "gemma4_unified_text": SCALAR,
}


def with_skipped(model, cuts):
    """A copy in which the halves that go add nothing."""
    model = copy.deepcopy(model)
    for stack in find_stacks(model).values():
        for cut in cuts:
            places = [(cut.front, 1), (cut.back, 0)] if isinstance(cut, Seam) else [(cut, 0), (cut, 1)]
            for number, half in places:
                skip(stack[number], RULES.get(text_config(model.config).model_type, USUAL)[half])
    return model


def skip(layer, rules):
    """Let half of a layer add nothing; return the hooks."""
    hooks = [module.register_forward_hook(rules[name]) for name, module in layer.named_modules() if name in rules]
    assert hooks, f"no module of {type(layer).__name__} is known here"
    for name, rule in rules.items():
        if rule is ONE and hasattr(layer, name):
            held = getattr(layer, name)
            with torch.no_grad():
                held.fill_(1) if torch.is_tensor(held) else setattr(layer, name, 1)
    return hooks


def check_skips(model, inputs):
    """A layer hands on what it is given once both halves add nothing, or the truth is none."""
    for number in range(1, len(next(iter(find_stacks(model).values())))):
        skipped = with_skipped(model, [number])
        for stack in find_stacks(skipped).values():
            seen = {}

            def enter(layer, args, kwargs, seen=seen):
                seen["in"] = args[0] if args else kwargs["hidden_states"]

            def leave(layer, args, output, seen=seen):
                seen["out"] = output[0] if isinstance(output, tuple | list) else output

            stack[number].register_forward_pre_hook(enter, with_kwargs=True)
            stack[number].register_forward_hook(leave)
            zoo.logits(skipped, inputs)
            if not torch.allclose(seen["in"], seen["out"], atol=1e-6):
                return f"layer {number} without both halves is not handed on"
    return None
