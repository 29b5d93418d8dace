"""Load a trimmed checkpoint with plain transformers, in a process that never heard of trim_trainer, and generate."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

directory = sys.argv[1] if len(sys.argv) > 1 else "out/demo"
model = AutoModelForCausalLM.from_pretrained(directory)
tokenizer = AutoTokenizer.from_pretrained(directory)
prompt = "Diagnosis: Acute bronchitis due to streptococcus\nICD-10-CM chapter:"
output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=24, do_sample=False)
sys.stdout.write(
    f"{directory}: {model.config.num_hidden_layers} layers, {model.num_parameters():,} parameters, loaded with "
    f"transformers alone: {'trim_trainer' not in sys.modules}\n{tokenizer.decode(output[0], skip_special_tokens=True)}\n"
)
