"""How far unmixing is from exact: the error that encryption-aware training reduces.

``measure`` says how large it is end to end, ``layer_errors`` where it arises, ``cause_errors``
from what; ``theory`` has bounds and closed forms, ``precision`` what rounding does.
"""

from facemix_jax.linearity import precision, theory
from facemix_jax.linearity.causes import CauseErrors, cause_errors
from facemix_jax.linearity.end_to_end import UnmixError, measure, unmix_error
from facemix_jax.linearity.layers import LayerErrors, layer_errors
from facemix_jax.linearity.local import additivity_error, homogeneity_error, jacobian_error

__all__ = [
    "CauseErrors",
    "LayerErrors",
    "UnmixError",
    "additivity_error",
    "cause_errors",
    "homogeneity_error",
    "jacobian_error",
    "layer_errors",
    "measure",
    "precision",
    "theory",
    "unmix_error",
]
