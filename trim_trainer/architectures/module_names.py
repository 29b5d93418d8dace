"""Layer numbers in module names, as configs of quantization and of adapters list them."""

import re
from collections.abc import Collection
from typing import Any

from .kept import CannotSay, Kept

_LAYER_NAME = re.compile(r"(?P<stack>(?:^|.*\.)(?:layers|layer|blocks|block|h))\.(?P<number>\d+)(?P<rest>(?:\..*)?)$")
_EXPRESSIONS = ("re:", "+:", "-:")  # of compressed-tensors, and of GPTQ's `dynamic`
_NUMBER_IN = re.compile(r"\.[(\[]?\d")  # such as `layers\.5`, `layers.(3|4)` and `layers.[0-4]`
_OTHER_TOWER = re.compile(r"vision|visual|audio|image|mtp", re.IGNORECASE)


def renumber_names(value: Any, kept: Kept, stacks: Collection[str] = ()) -> Any:
    """Renumber the layers in module names like `model.layers.7.mlp`, in lists and dict keys; dropped ones go.

    Args:
        value: The names.
        kept: What stays.
        stacks: Names of the decoder's lists of layers; layers of another list, such as a perceiver's, keep their numbers. None
            are named: what is called after another tower does.

    Raises:
        CannotSay: a name is that of a whole layer, of which one half has gone to another; or a regular expression that may tell
            layers by their numbers.
    """
    if isinstance(value, dict):
        renamed = {
            _renumber_name(name, kept, stacks): renumber_names(entry, kept, stacks) for name, entry in value.items()
        }
        renamed.pop(None, None)
        return renamed
    if isinstance(value, list | tuple | set):
        renamed = [
            _renumber_name(entry, kept, stacks) if isinstance(entry, str) else renumber_names(entry, kept, stacks)
            for entry in value
        ]
        return type(value)(entry for entry in renamed if entry is not None)
    return value


def _renumber_name(name: Any, kept: Kept, stacks: Collection[str]) -> Any:
    if isinstance(name, str) and name.startswith(_EXPRESSIONS) and _NUMBER_IN.search(name.replace("[0-9]", "")):
        raise CannotSay(
            f"{name!r} is a regular expression that may tell layers by their numbers, which would become others"
        )
    found = _LAYER_NAME.match(name) if isinstance(name, str) else None
    if found is None or _OTHER_TOWER.search(found["stack"]):
        return name
    # A name may begin further inside than the stack's, or further outside.
    if stacks and not any(_is_same(found["stack"], stack) for stack in stacks):
        return name
    number, part = int(found["number"]), found["rest"].split(".")[1:2]
    if not part and kept.is_joined and kept.renumber([number]) != kept.of_mlps.renumber([number]):
        raise CannotSay(f"{name!r} is named as a whole, and halves of it go to different places")
    half = kept.of_mlps if part and part[0] in kept.mlp_parts else kept.of_attention
    new = half.renumber([number])
    return f"{found['stack']}.{new[0]}{found['rest']}" if new else None


def _is_same(one: str, other: str) -> bool:
    """Whether two names are of one module, of which either may begin further inside."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")
