"""Where a model cannot be scored, the error says why: the examples, the memory, or a layer that has to stay."""

import pytest
import torch
import zoo
from drawn import draw_examples
from tiny import make_examples, make_model
from transformers import AutoModelForCausalLM

from trim_trainer import score_layers
from trim_trainer.architectures.errors import UnsupportedArchitectureError
from trim_trainer.architectures.modules import find_layers
from trim_trainer.data.examples import ScoredExample
from trim_trainer.scoring.layout import ONE_BY_ONE
from trim_trainer.scoring.scan import scan_layers, score_choices
from trim_trainer.scoring.trial import ScoringError, choose_layout


def test_a_text_beyond_the_table_of_positions_is_the_cause_that_is_named():
    model, example = make_model("gpt2", n_positions=16), ScoredExample(tuple(range(4, 24)), ((5, 2),), ((5, 2),))
    with pytest.raises(ScoringError, match="has 22 tokens, but `max_position_embeddings`.*is 16.*`max_length` to 16"):
        choose_layout(model, [*draw_examples(2), example])


def test_a_token_that_the_model_does_not_know_is_the_cause_that_is_named():
    example = ScoredExample((5, 1000), ((5, 2),), ((5, 2),))
    with pytest.raises(ScoringError, match="does not run on the examples, with no layer left out.*IndexError"):
        choose_layout(make_model(), [example])


def test_too_little_memory_is_the_cause_that_is_named(monkeypatch):
    model = make_model()

    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(
        ScoringError, match="Memory of cpu does not suffice for one example of .* tokens.*`max_length`"
    ):
        choose_layout(model, draw_examples(2))


def test_a_layer_that_cannot_be_left_out_is_the_cause_where_the_whole_model_runs():
    model = make_model()

    class Greedy(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden, **kwargs):
            if not hidden.mean(-1).abs().max() < 1e-4:
                raise ValueError("I come behind a layer that centres")
            return self.layer(hidden, **kwargs)

    layers = find_layers(model)
    layers[1].register_forward_hook(lambda layer, args, output: output - output.mean(-1, keepdim=True))
    layers[2] = Greedy(layers[2])
    with pytest.raises(UnsupportedArchitectureError, match="cannot be left out one at a time.*that centres"):
        choose_layout(model, draw_examples(2))


@pytest.mark.parametrize("num_experts", [0, 4])
def test_the_routers_loss_is_no_part_of_scoring(num_experts, tokenizer):
    """A Granite hybrid whose config asks for it, with experts and without a router at all."""
    config = zoo.make("granitemoehybrid").config
    config.num_local_experts = num_experts
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    examples = draw_examples(3)
    expected = scan_layers(model, examples, ONE_BY_ONE)
    layout, scores = choose_layout(model, examples), score_layers(model, tokenizer, make_examples(4))
    model.config.output_router_logits = True
    assert torch.equal(scan_layers(model, examples, ONE_BY_ONE).log_probs, expected.log_probs)
    assert choose_layout(model, examples) == layout
    assert score_layers(model, tokenizer, make_examples(4)) == scores
    for criterion in ("block_influence", "taylor"):
        assert len(score_layers(model, tokenizer, make_examples(4), criterion)) == len(find_layers(model))
    assert model.config.output_router_logits is True


def test_what_counts_of_a_prompt_is_scored_with_each_choice(tiny_model):
    """As one plain pass over prompt and choice, in packed rows too; the same prompt behind others is shared."""
    model = tiny_model()
    plain = draw_examples(4)
    examples = [
        ScoredExample(e.prompt_ids, e.choice_ids, e.choice_labels, e.answer, (-100, *e.prompt_ids[1:])) for e in plain
    ]
    expected = []
    for example in plain:
        for choice in example.choice_ids:
            ids = torch.tensor([example.prompt_ids + choice])
            with torch.no_grad():
                log_probs = model(ids).logits[0].log_softmax(-1)
            expected.append(log_probs[:-1].gather(1, ids[0, 1:, None]).sum().item())
    assert score_choices(model, examples, choose_layout(model, examples)).tolist() == pytest.approx(expected, rel=1e-5)
    assert score_choices(model, examples, ONE_BY_ONE).tolist() == pytest.approx(expected, rel=1e-5)


def test_choices_that_share_no_token_are_scored(tiny_model):
    """Of texts that are cut to their ends nothing may be left in common."""
    model = tiny_model()
    example = ScoredExample((), ((7, 8, 9), (8, 9, 10, 11)), ((-100, 8, 9), (-100, -100, 10, 11)))
    expected = []
    for ids, labels in zip(example.choice_ids, example.choice_labels, strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(log_probs[t - 1, label].item() for t, label in enumerate(labels) if label != -100))
    layout = choose_layout(model, [example, *draw_examples(2)])
    assert score_choices(model, [example], layout).tolist() == pytest.approx(expected, rel=1e-5)
