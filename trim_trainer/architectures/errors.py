"""Why layers of a model cannot be dropped."""


class UnsupportedArchitectureError(ValueError):
    """No layer of this model can be dropped; the message names the model type and the reason."""


class LayerConstraintError(ValueError):
    """These layers cannot be dropped; the message names the model type, the layers and the constraint."""
