"""Defences: ``build(DefenseConfig(...))`` gives a ``Defense``."""

import dataclasses
from collections.abc import Callable

from facemix_jax import _validate, mixing
from facemix_jax.defenses.base import Defense, DefenseCost
from facemix_jax.defenses.facemix import facemix, none

__all__ = ["DEFENSES", "Defense", "DefenseConfig", "DefenseCost", "build", "facemix", "none"]

DEFENSES: dict[str, Callable[["DefenseConfig"], Defense]] = {
    "none": lambda config: none(),
    "facemix": lambda config: facemix(group_size=config.group_size, family=config.family),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseConfig:
    """How activations are protected.

    Attributes:
        defense: ``facemix``, or ``none`` for plain training and inference.
        group_size: images mixed together (the paper's S_G).
        family: how mixing matrices are drawn: ``haar`` (the paper), ``hadamard``,
            ``signed_permutation`` or ``gaussian`` for studies.
    """

    defense: str = "facemix"
    group_size: int = 8
    family: str = "haar"

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        _validate.one_of(DEFENSES, defense=self.defense)
        _validate.one_of(mixing.FAMILIES, family=self.family)
        _validate.positive(group_size=self.group_size)


def build(config: DefenseConfig) -> Defense:
    """Builds the defence.

    Raises:
        UsageError: a value is out of range for this defence.
    """
    return DEFENSES[config.defense](config)
