"""Defences: ``build(DefenseConfig(...))`` gives a ``Defense``."""

import dataclasses
from collections.abc import Callable

from facemix_jax import _validate, mixing
from facemix_jax.defenses.base import Defense, DefenseCost
from facemix_jax.defenses.facemix import facemix, none
from facemix_jax.defenses.perturb import blur, noise

__all__ = [
    "DEFENSES",
    "Defense",
    "DefenseConfig",
    "DefenseCost",
    "blur",
    "build",
    "facemix",
    "noise",
    "none",
]

DEFENSES: dict[str, Callable[["DefenseConfig"], Defense]] = {
    "none": lambda config: none(),
    "facemix": lambda config: facemix(group_size=config.group_size, family=config.family),
    "noise": lambda config: noise(variance=config.image_noise_variance),
    "blur": lambda config: blur(size=config.blur_size),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseConfig:
    """How activations are protected.

    Attributes:
        defense: ``facemix``; ``noise`` or ``blur``, which perturb what is sent (the image, with
            cut 0); or ``none`` for plain training and inference.
        group_size: images mixed together (the paper's S_G).
        family: how mixing matrices are drawn: ``haar`` (the paper), ``hadamard``,
            ``signed_permutation`` or ``gaussian`` for studies.
        image_noise_variance: of the defence ``noise``, in ImageNet-normalised units: 4 or 8 in the
            paper, or 16 and 64 if it means standard deviations.
        blur_size: of the defence ``blur``: positions a side that are left, 16 or 8 in the paper.
    """

    defense: str = "facemix"
    group_size: int = 8
    family: str = "haar"
    image_noise_variance: float = 4.0
    blur_size: int = 16

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        _validate.one_of(DEFENSES, defense=self.defense)
        _validate.one_of(mixing.FAMILIES, family=self.family)
        _validate.positive(
            group_size=self.group_size,
            image_noise_variance=self.image_noise_variance,
            blur_size=self.blur_size,
        )


def build(config: DefenseConfig) -> Defense:
    """Builds the defence.

    Raises:
        UsageError: a value is out of range for this defence.
    """
    return DEFENSES[config.defense](config)
