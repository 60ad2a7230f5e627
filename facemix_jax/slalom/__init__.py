"""Slalom (Tramèr and Boneh, 2019): every linear layer on the cloud, blinded and verified.

The edge sends fixed-point activations plus a one-time pad modulo a prime, so that the cloud sees
uniform numbers; what comes back is checked by Freivalds' test and unblinded. All that is not
linear stays on the edge, and every linear layer is a round on the link.
"""

from facemix_jax.slalom.network import Layer, QuantizedNetwork, quantize, run_plain
from facemix_jax.slalom.protocol import (
    Blinding,
    Cloud,
    TamperedError,
    Traffic,
    honest_cloud,
    infer,
    precompute,
)
from facemix_jax.slalom.view import first_layer

__all__ = [
    "Blinding",
    "Cloud",
    "Layer",
    "QuantizedNetwork",
    "TamperedError",
    "Traffic",
    "first_layer",
    "honest_cloud",
    "infer",
    "precompute",
    "quantize",
    "run_plain",
]
