"""What goes at a time: a layer, or two neighbouring halves, which may be of two layers."""

from .criteria import CRITERIA, CriterionLike, find_criterion

LAYER, SUBLAYER = UNITS = ("layer", "sublayer")


def check_unit(unit: str, criterion: CriterionLike) -> None:
    """Raise a ValueError if there is no such unit, or a criterion does not score it."""
    if unit not in UNITS:
        raise ValueError(f"`trim_unit` is {unit!r}, expected one of {', '.join(UNITS)}.")
    if unit == SUBLAYER and not find_criterion(criterion).takes_seams:
        able = ", ".join(name for name, row in CRITERIA.items() if row.takes_seams)
        raise ValueError(
            f"`trim_unit` is {unit!r}, but `importance` is {criterion!r}, which scores whole layers only. Set it to one of {able}, "
            f"or `trim_unit` to {LAYER!r}."
        )
