"""Attacks: what the cloud learns from what it sees. Mixing is not a cipher."""

from facemix_jax.attacks.base import Attack, Figure, View
from facemix_jax.attacks.separation import (
    Separation,
    SeparationReport,
    evaluate_separation,
    no_attack,
    recovery,
    separate,
)

__all__ = [
    "Attack",
    "Figure",
    "Separation",
    "SeparationReport",
    "View",
    "evaluate_separation",
    "no_attack",
    "recovery",
    "separate",
]
