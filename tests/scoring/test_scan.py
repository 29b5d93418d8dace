import copy
from dataclasses import replace

import pytest
import torch
import zoo
from drawn import draw_examples
from tiny import CONFIGS
from torch.testing import assert_close

from trim_trainer import drop_layers, droppable_layers
from trim_trainer.architectures.errors import UnsupportedArchitectureError
from trim_trainer.architectures.modules import find_layers
from trim_trainer.data.examples import ScoredExample
from trim_trainer.data.metrics import measure
from trim_trainer.scoring.batches import make_batches
from trim_trainer.scoring.layout import ONE_BY_ONE, PLAIN, Layout
from trim_trainer.scoring.scan import scan_layers, score_choices
from trim_trainer.scoring.trial import choose_layout

UNPACKED, PACKED = Layout(False, True), Layout(True, True)


@torch.no_grad()
def forward_log_probs(model, examples):
    """One ordinary forward pass per choice, without a batch, a mask or a hook."""
    totals = []
    for example in examples:
        for choice in example.choice_ids:
            ids = torch.tensor([example.prompt_ids + choice])
            log_probs = model(ids, use_cache=False).logits[0].log_softmax(-1)
            start = len(example.prompt_ids)
            totals.append(sum(log_probs[start + t - 1, token].item() for t, token in enumerate(choice)))
    return torch.tensor(totals)


@pytest.mark.parametrize("layout", [PLAIN, UNPACKED, PACKED], ids=str)
def test_scores_are_those_of_plain_forward_passes(layout, tiny_model):
    model, examples = tiny_model(), draw_examples(7)
    assert_close(score_choices(model, examples, layout), forward_log_probs(model, examples), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_leaving_a_layer_out_scores_like_dropping_it(model_type, attention, tiny_model):
    model, examples = tiny_model(model_type), draw_examples(5)
    model.set_attn_implementation(attention)
    scan = scan_layers(model, examples, choose_layout(model, examples))
    assert_close(scan.log_probs[0], forward_log_probs(model, examples), atol=1e-4, rtol=1e-5)
    for layer in range(len(find_layers(model))):
        trimmed = drop_layers(copy.deepcopy(model), [layer])
        assert_close(scan.log_probs[1 + layer], forward_log_probs(trimmed, examples), atol=1e-4, rtol=1e-5)


# By the fastest layout that is exact: recurrence cannot be packed; some states fit no staggered batch.
LAYOUTS_OF = {
    "llama": PACKED,
    "gemma3_text": PACKED,  # windows of 4 tokens, shorter than a packed row
    "cohere2": PACKED,  # scales its logits
    "gpt_oss": PACKED,
    "mamba": UNPACKED,
    "qwen3_next": UNPACKED,
    "roberta": UNPACKED,  # computes positions from tokens
    "bloom": Layout(False, False),
    "zaya": Layout(False, False),  # hands a router state from layer to layer
    "gemma3n_text": Layout(True, False),
    "llama4_text": Layout(False, True, crops_head=False),  # its decoder alone takes other masks
    "prophetnet": ONE_BY_ONE,  # padding changes what it makes of a token
}


@pytest.mark.parametrize("name", ["lfm2", "jamba", "qwen3_next"])
def test_a_state_that_leaks_is_noticed_where_the_examples_that_are_tried_do_not_show_it(name):
    """The longest and the shortest example have one token behind the first choice, or are texts with rows of their own."""
    prompt, model = tuple(range(10, 30)), zoo.make(name)
    choices = [((7, 8, 9), (6,)), ((5,), (4,)), ((40, 41, 42), (50, 51, 52))]
    questions = [ScoredExample(prompt[:size], pair, pair) for size, pair in zip((20, 3, 5), choices, strict=True)]
    texts = [ScoredExample(prompt, ((end, 3, 4),), ((end, 3, 4),)) for end in (5, 6, 7, 8)]
    texts += [ScoredExample(prompt[::-1], (prompt,), (prompt,)), ScoredExample((3, 4), ((9,),), ((9,),))]
    for examples in (questions, texts):
        found = score_choices(model, examples, choose_layout(model, examples))
        assert_close(found, score_choices(model, examples, ONE_BY_ONE), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS_OF)
def test_the_fastest_exact_layout_is_found(name):
    model, examples = zoo.make(name), draw_examples(3)
    layout = choose_layout(model, examples)
    assert layout == LAYOUTS_OF[name]
    scan = scan_layers(model, examples, layout)
    for layer in droppable_layers(model)[:2]:
        trimmed = drop_layers(copy.deepcopy(model), [layer])
        assert_close(scan.log_probs[1 + layer], score_choices(trimmed, examples, ONE_BY_ONE), atol=1e-4, rtol=1e-5)


def test_rounding_of_unlikely_choices_does_not_rule_batches_out(tiny_model):
    model, examples = tiny_model(), draw_examples(3)
    with torch.no_grad():
        model.lm_head.weight *= 2000
    assert score_choices(model, examples, ONE_BY_ONE).abs().max() > 1000
    assert choose_layout(model, examples) == PACKED


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "mamba"])
def test_no_row_is_shared_where_states_go_on_along_it(name):
    """In 16 bits what leaks from one text into the next is no more than rounding in a long one."""
    assert not choose_layout(zoo.make(name).bfloat16(), draw_examples(3)).is_packed


def test_texts_that_share_their_first_token_only_have_rows_of_their_own(tiny_model):
    ends = [tuple(range(4 + first, 24 + first)) for first in range(6)]
    texts = [ScoredExample((1,), (end,), (end,)) for end in ends]
    (batch,) = make_batches(tiny_model(), texts, is_packed=True)
    assert batch.shape == (6, 21)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.CAUSAL if name not in zoo.UNBUILT])
def test_every_architecture_is_scored_exactly_or_refused(name):
    model, examples = zoo.make(name), draw_examples(3)
    try:
        layout = choose_layout(model, examples)
    except UnsupportedArchitectureError as error:
        assert name.partition("@")[0] in {"emu3", "mllama", "hrm_text", "reformer", "xlm"}, error
        return
    scan = scan_layers(model, examples, layout)
    for layer in droppable_layers(model)[:2]:
        trimmed = drop_layers(copy.deepcopy(model), [layer])
        assert_close(scan.log_probs[1 + layer], score_choices(trimmed, examples, ONE_BY_ONE), atol=5e-4, rtol=1e-5)


def test_candidates_can_be_some_of_the_layers(tiny_model):
    model, examples = tiny_model(), draw_examples(4)
    whole = scan_layers(model, examples, PACKED)
    for layout in (PACKED, PLAIN):
        some = scan_layers(model, examples, layout, candidates=[1, 4])
        assert_close(some.log_probs, whole.log_probs[[0, 2, 5]], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_batch_size_changes_nothing(batch_tokens, tiny_model):
    model, examples = tiny_model(), draw_examples(9)
    expected = scan_layers(model, examples, PACKED)
    scan = scan_layers(model, examples, PACKED, batch_tokens=batch_tokens)
    assert_close(scan.log_probs, expected.log_probs, atol=1e-4, rtol=1e-5)
    assert_close(scan.activation_norms, expected.activation_norms)


def behind(beginning, examples):
    return [replace(example, prompt_ids=beginning + example.prompt_ids) for example in examples]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_examples_share_the_beginning_of_their_prompts(model_type, tiny_model):
    model = tiny_model(model_type)
    first, second, alone = draw_examples(4, 1), draw_examples(5, 2), draw_examples(2, 3)
    examples = [*behind((7,) * 15, first), *alone, *behind((7, 8, 9) * 5, second)]
    batches = list(make_batches(model, examples, is_packed=True, batch_tokens=1000))
    assert sorted(
        len(batch.counted_examples[batch.counted_rows == row].unique())
        for batch in batches
        for row in range(batch.shape[0])
    ) == [1, 1, 4, 5]
    assert choose_layout(model, examples) == PACKED
    scan, apart = scan_layers(model, examples, PACKED), scan_layers(model, examples, UNPACKED)
    assert_close(scan.log_probs[0], forward_log_probs(model, examples), atol=1e-4, rtol=1e-5)
    assert_close(scan.log_probs, apart.log_probs, atol=1e-4, rtol=1e-5)
    assert_close(scan.activation_norms, apart.activation_norms)


def test_rows_that_examples_share_stay_within_the_budget(tiny_model):
    examples = behind((7,) * 20, draw_examples(30))
    batches = list(make_batches(tiny_model(), examples, is_packed=True, batch_tokens=120))
    assert len(batches) > 3
    assert all(batch.inputs["input_ids"].numel() <= 120 for batch in batches)
    assert sum(batch.num_examples for batch in batches) == 30


@pytest.mark.parametrize("layout", [PACKED, PLAIN])
def test_few_logits_at_a_time_change_nothing(layout, tiny_model, monkeypatch):
    model, examples = tiny_model(), draw_examples(5)
    expected = scan_layers(model, examples, layout)
    monkeypatch.setattr("trim_trainer.scoring.scan.MAX_LOGITS", 7 * 96)  # seven positions of a vocabulary of 96
    assert_close(scan_layers(model, examples, layout).log_probs, expected.log_probs, atol=1e-4, rtol=1e-5)


def test_activation_norm_is_the_frobenius_norm_of_the_output_in_every_layout(tiny_model):
    model, (example,) = tiny_model(), draw_examples(1)
    outputs = []
    find_layers(model)[2].register_forward_hook(lambda layer, args, output: outputs.append(output))
    rows = [torch.tensor([example.prompt_ids + choice]) for choice in example.choice_ids]
    with torch.no_grad():
        for row in rows:
            model(row)
    start = len(example.prompt_ids)
    tokens = torch.cat([outputs[0][0, :start], *(output[0, start:] for output in outputs)])
    for layout in (PLAIN, UNPACKED, PACKED):
        norms = scan_layers(model, [example], layout).activation_norms
        assert_close(norms[2], torch.linalg.matrix_norm(tokens), rtol=1e-4, atol=1e-4)


def test_unlabelled_tokens_do_not_count(tiny_model):
    model = tiny_model()
    whole = ScoredExample((5, 6), ((7, 8, 9),), ((7, 8, 9),))
    part = ScoredExample((5, 6), ((7, 8, 9),), ((7, -100, 9),))
    middle = ScoredExample((5, 6, 7), ((8, 9),), ((8, -100),))
    scores = score_choices(model, [whole, part, middle], PACKED)
    assert_close(scores[0] - scores[1], scores[2])
    assert_close(measure(scores[1:2], [part], "loss"), -scores[1] / 2)


def test_a_scan_leaves_the_model_as_it_was(tiny_model):
    model = tiny_model().train()
    scan_layers(model, draw_examples(3), PACKED)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
