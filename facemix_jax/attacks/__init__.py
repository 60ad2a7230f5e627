"""Attacks: what the cloud learns from what it sees. Mixing is not a cipher."""

from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Figure,
    Recording,
    Result,
    Target,
    View,
    record,
    recorded_rows,
)
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
    "AttackConfig",
    "Figure",
    "Recording",
    "Result",
    "Separation",
    "SeparationReport",
    "Target",
    "View",
    "evaluate_separation",
    "no_attack",
    "record",
    "recorded_rows",
    "recovery",
    "separate",
]
