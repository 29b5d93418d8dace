"""Docstrings link as those of Hugging Face libraries do, [`TrimConfig`]: on the site that is a reference."""

import re

from griffe import Extension

LINK = re.compile(r"\[`~?[\w.]*?(?P<name>\w+)`\](?![\[(])")
EXTERNAL = {
    "SFTConfig": "https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig",
    "SFTTrainer": "https://huggingface.co/docs/trl/sft_trainer#trl.SFTTrainer",
}


def link(found: re.Match) -> str:
    """The reference in Markdown."""
    name = found["name"]
    return f"[`{name}`]({EXTERNAL[name]})" if name in EXTERNAL else f"[`{name}`][trim_trainer.{name}]"


class SiteLinks(Extension):
    """Rewrites docstrings as they are read."""

    def on_object(self, *, obj, **kwargs):
        """Any module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = LINK.sub(link, obj.docstring.value)
