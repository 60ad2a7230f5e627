"""Defences: ``build(DefenseConfig(...))`` gives a ``Defense``."""

import dataclasses
from collections.abc import Callable

from facemix_jax import _validate, mixing
from facemix_jax.defenses.base import Defense, DefenseCost
from facemix_jax.defenses.facemix import facemix, none
from facemix_jax.defenses.noisy import mix_key_of, with_noise
from facemix_jax.defenses.perturb import blur, noise

__all__ = [
    "DEFENSES",
    "Defense",
    "DefenseConfig",
    "DefenseCost",
    "blur",
    "build",
    "facemix",
    "mix_key_of",
    "noise",
    "none",
    "with_noise",
]

DEFENSES: dict[str, Callable[["DefenseConfig", int], Defense]] = {
    "none": lambda config, tiles: none(),
    "facemix": lambda config, tiles: facemix(
        group_size=config.group_size,
        family=config.family,
        deal_blocks=tiles if config.scatter else 0,
    ),
    "noise": lambda config, tiles: noise(variance=config.image_noise_variance),
    "blur": lambda config, tiles: blur(size=config.blur_size),
}
"""By name, from the configuration and the tiles of the network's maps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseConfig:
    """How activations are protected.

    Attributes:
        defense: ``facemix``; ``noise`` or ``blur``, which perturb what is sent (the image, with
            cut 0); or ``none`` for plain training and inference.
        group_size: images mixed together (the paper's S_G).
        family: how mixing matrices are drawn: ``haar`` (the paper), ``hadamard``,
            ``signed_permutation`` or ``gaussian`` for studies.
        noise: standard deviation of Gaussian noise on what is sent, in units of its own; 0 for
            none, as in the paper.
        scatter: in every tile, deal the images of a request to groups anew, so that no two tiles
            have the same company; needs a network with tiles, and helps from ``group_size``
            groups in a request on.
        image_noise_variance: of the defence ``noise``, in ImageNet-normalised units: 4 or 8 in the
            paper, or 16 and 64 if it means standard deviations.
        blur_size: of the defence ``blur``: positions a side that are left, 16 or 8 in the paper.
    """

    defense: str = "facemix"
    group_size: int = 8
    family: str = "haar"
    noise: float = 0.0
    scatter: bool = False
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
        _validate.in_range(0, 100, noise=self.noise)


def build(config: DefenseConfig, *, tiles: int = 1) -> Defense:
    """Builds the defence.

    Args:
        config: of the defence.
        tiles: rows that each image becomes, ``model.spec.tiles``.

    Raises:
        UsageError: a value is out of range for this defence.
    """
    if config.scatter and tiles == 1:
        raise _validate.UsageError(
            "scatter deals images to groups anew in every tile, but this network's maps are not "
            "cut into tiles. Set a tile size smaller than the map (--tile), or leave scatter out."
        )
    defense = DEFENSES[config.defense](config, tiles)
    return with_noise(defense, config.noise) if config.noise else defense
