"""Tiny random models, a tokenizer of words, and multiple-choice examples: what nearly every test needs."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

NUM_LAYERS = 6
SLIDING, FULL = "sliding_attention", "full_attention"
IRREGULAR = [SLIDING, FULL, SLIDING, SLIDING, FULL, FULL]
WORDS = (
    "the cat dog sat ran on mat road red blue green big small is was it a an and or not what colour animal where "
    "Question Answer : yes no one two three four five six seven eight nine ten in out of to from with"
).split()

# Settings per layer that are irregular on purpose: a wrong entry changes logits. `zoo` has every architecture.
CONFIGS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "phi3": {"sliding_window": None},
    "qwen2": {"layer_types": IRREGULAR, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "qwen3": {"layer_types": IRREGULAR, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "gemma3_text": {"layer_types": IRREGULAR, "sliding_window": 4},
    "smollm3": {"no_rope_layers": [1, 0, 0, 1, 1, 0]},
    "gpt2": {},
}


def make_model(model_type="llama", num_layers=NUM_LAYERS, seed=0, **overrides):
    """A tiny random model whose every weight differs from its initial value."""
    sizes = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if model_type == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": num_layers, "n_head": 4, "n_positions": 128}
    else:
        sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": num_layers, "head_dim": 8}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    options = CONFIGS[model_type] if num_layers == NUM_LAYERS else {}
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(sizes | options | overrides)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def make_tokenizer():
    vocab = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("</s>", "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_examples(number, first=0):
    """Multiple-choice examples, all different: what colour does an animal have?"""
    colours, animals = [" red", " blue", " green"], ["cat", "dog"]
    numbers = "one two three four five six seven eight nine ten".split()
    examples = []
    for i in range(first, first + number):
        answer = (i * 7 + i // 3) % 3
        prompt = f"Question : {numbers[i % 10]} {numbers[i // 10 % 10]} {numbers[i // 100]} {animals[i % 2]} colour is"
        examples.append({"prompt": prompt, "completion": colours[answer], "choices": colours, "answer": answer})
    return examples


# Of a training run on them.
TRAINING = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 16,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 3,
}
# Of a run with a target: what tests of everything else need not wait for, or look at one by one.
TRIMMING = {"sparse_update_ratio": 0.25, "calibration_metric": None, "compensation_size": 0, "protected_layers": []}
