"""llama.cpp's converter, for a checkpoint with fewer tokens than its base model.

    python benchmarks/to_gguf.py .../llama.cpp/convert_hf_to_gguf.py out/small out/small.gguf --tokenizer BASE

The converter tells BPE tokenizers apart by the ids that one gives a certain text, so it knows none whose tokens have other
numbers. How text is split before it is merged is as in the base model: there it looks here.
"""

import argparse
import runpy
import sys
from pathlib import Path

from transformers import AutoTokenizer


def main() -> None:
    """Let the converter run with the base model's tokenizer where it looks for the kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("converter", type=Path, help="convert_hf_to_gguf.py, with the folders beside it")
    parser.add_argument("model", help="folder of the checkpoint")
    parser.add_argument("output", help="GGUF file")
    parser.add_argument("--tokenizer", required=True, help="Hub name or folder of the base model")
    parser.add_argument("--outtype", default="f32", help="as the converter's (default: f32)")
    options = parser.parse_args()
    sys.path.insert(0, str(options.converter.parent))
    from conversion.base import TextModel

    whole, kind_of = AutoTokenizer.from_pretrained(options.tokenizer), TextModel.get_vocab_base_pre
    TextModel.get_vocab_base_pre = lambda self, tokenizer: kind_of(self, whole)
    sys.argv = [options.converter.name, options.model, "--outtype", options.outtype, "--outfile", options.output]
    runpy.run_path(str(options.converter), run_name="__main__")


if __name__ == "__main__":
    main()
