"""How examples are laid out for a pass, from fast to slow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How examples are laid out for a pass, found by `choose_layout`.

    Attributes:
        is_packed: All choices of an example stand behind one prompt, in one row; examples behind what they share.
        is_staggered: The candidates of a scan join the batch at the layer that they skip, instead of a pass each.
        crops_head: The head runs on the positions of the scored tokens only.
        is_batched: Rows are padded to one length and run together; else one at a time.
    """

    is_packed: bool
    is_staggered: bool
    crops_head: bool = True
    is_batched: bool = True


PLAIN = Layout(is_packed=False, is_staggered=False, crops_head=False)
ONE_BY_ONE = Layout(is_packed=False, is_staggered=False, crops_head=False, is_batched=False)
# From fast to slow. What a layout may raise on a model that it does not fit is what torch and Transformers raise there.
LAYOUTS = (
    Layout(True, True),
    Layout(False, True),
    Layout(True, True, crops_head=False),
    Layout(False, True, crops_head=False),
    Layout(True, False),
    Layout(False, False),
    PLAIN,
)
