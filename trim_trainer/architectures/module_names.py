"""Layer numbers in module names, as configs of quantization and of adapters list them."""

import re
from typing import Any

from .kept import CannotSay, Kept

_LAYER_NAME = re.compile(r"(?P<stack>(?:^|.*\.)(?:layers|layer|blocks|block|h))\.(?P<number>\d+)(?P<rest>(?:\..*)?)$")
_OTHER_TOWER = re.compile(r"vision|visual|audio|image|mtp", re.IGNORECASE)


def renumber_names(value: Any, kept: Kept) -> Any:
    """Renumber the layers in module names like `model.layers.7.mlp`, in lists and dict keys; dropped ones go.

    Raises:
        CannotSay: a name is that of a whole layer, of which one half has gone to another.
    """
    if isinstance(value, dict):
        renamed = {_renumber_name(name, kept): renumber_names(entry, kept) for name, entry in value.items()}
        renamed.pop(None, None)
        return renamed
    if isinstance(value, list | tuple | set):
        renamed = [
            _renumber_name(entry, kept) if isinstance(entry, str) else renumber_names(entry, kept) for entry in value
        ]
        return type(value)(entry for entry in renamed if entry is not None)
    return value


def _renumber_name(name: Any, kept: Kept) -> Any:
    found = _LAYER_NAME.match(name) if isinstance(name, str) else None
    if found is None or _OTHER_TOWER.search(found["stack"]):
        return name
    number, part = int(found["number"]), found["rest"].split(".")[1:2]
    if not part and kept.is_joined and kept.renumber([number]) != kept.of_mlps.renumber([number]):
        raise CannotSay(f"{name!r} is named as a whole, and halves of it go to different places")
    half = kept.of_mlps if part and part[0] in kept.mlp_parts else kept.of_attention
    new = half.renumber([number])
    return f"{found['stack']}.{new[0]}{found['rest']}" if new else None
