"""Defences: ``build(DefenseConfig(...))`` gives a ``Defense``."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from facemix_jax import _validate, mixing
from facemix_jax.defenses.base import Defense, DefenseCost, Rows, rows_of
from facemix_jax.defenses.facemix import facemix, none
from facemix_jax.defenses.layers import (
    WIRES,
    dispersed,
    rounded,
    with_blinding,
    with_decoys,
    with_rounding,
)
from facemix_jax.defenses.noisy import mix_key_of, with_noise
from facemix_jax.defenses.perturb import blur, noise

__all__ = [
    "DEFENSES",
    "OPTIONS_OF",
    "WIRES",
    "Defense",
    "DefenseConfig",
    "DefenseCost",
    "Rows",
    "blur",
    "build",
    "dispersed",
    "facemix",
    "mix_key_of",
    "noise",
    "none",
    "rounded",
    "rows_of",
    "used",
    "with_blinding",
    "with_decoys",
    "with_noise",
    "with_rounding",
]

DEFENSES: dict[str, Callable[["DefenseConfig", int], Defense]] = {
    "none": lambda config, tiles: none(),
    "facemix": lambda config, tiles: facemix(
        group_size=config.group_size + config.decoys,
        family=config.family,
        condition=config.condition,
        deal_blocks=tiles if config.scatter else 0,
    ),
    "noise": lambda config, tiles: noise(variance=config.image_noise_variance),
    "blur": lambda config, tiles: blur(size=config.blur_size),
}
"""By name, from the configuration and the tiles of the network's maps."""

OPTIONS_OF = {
    "facemix": ("group_size", "family", "condition"),
    "noise": ("image_noise_variance",),
    "blur": ("blur_size",),
}
"""What one defence alone takes, and ``none`` does not; ``condition`` is of one family alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseConfig:
    """How activations are protected.

    Attributes:
        defense: ``facemix``; ``noise`` or ``blur``, which perturb what is sent (the image, with
            cut 0); or ``none`` for plain training and inference.
        group_size: images mixed together (the paper's S_G).
        family: how mixing matrices are drawn: ``haar`` (so we read the paper), ``hadamard``,
            ``signed_permutation``, ``conditioned`` or ``gaussian`` for studies.
        condition: bound on the condition number of the family ``conditioned``.
        decoys: members of noise that every group has beside its ``group_size`` images, and whose
            responses are thrown away.
        noise: standard deviation of Gaussian noise on what is sent, in units of its own; 0 for
            none, as in the paper.
        blinding: standard deviation of what is added to rows and whose responses are known
            beforehand, in units of the rows' own; 0 for none. Answers are right only as far as
            main is additive.
        wire: how what is sent is rounded: ``float32`` (not at all), ``bfloat16``, ``int8``,
            ``int4``.
        clouds: how many share the rows of every group equally, each seeing its own only; they must
            not collude.
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
    condition: float = 10.0
    decoys: int = 0
    noise: float = 0.0
    blinding: float = 0.0
    wire: str = "float32"
    clouds: int = 1
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
            clouds=self.clouds,
        )
        _validate.finite(image_noise_variance=self.image_noise_variance)
        _validate.in_range(1, 1000, condition=self.condition)
        _validate.in_range(0, 100, noise=self.noise, blinding=self.blinding, decoys=self.decoys)
        _validate.one_of(WIRES, wire=self.wire)
        if self.defense != "facemix" and (
            self.decoys or self.blinding or self.clouds > 1 or self.scatter
        ):
            raise _validate.UsageError(
                f"decoys, blinding, clouds and scatter need groups of mixed rows, but the defence "
                f"is {self.defense!r}. Use 'facemix', or leave them out."
            )
        if self.decoys and self.scatter:
            raise _validate.UsageError(
                f"decoys is {self.decoys}, but scatter deals rows to other groups in every tile, "
                f"and with them the decoys. Leave one of the two out."
            )


def used(config: DefenseConfig) -> DefenseConfig:
    """The same defence, with what it does not take as by default: equal where defences are."""
    if config.defense not in (*OPTIONS_OF, "none"):  # one of somebody's own may take all
        return config
    taken = OPTIONS_OF.get(config.defense, ())
    others = {name for options in OPTIONS_OF.values() for name in options} - {*taken}
    if config.family != "conditioned":
        others.add("condition")
    plain = DefenseConfig()
    return dataclasses.replace(config, **{name: getattr(plain, name) for name in others})


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
    registered = DEFENSES[config.defense], mixing.FAMILIES[config.family]
    return _built(registered, config, tiles)


@functools.lru_cache(maxsize=32)
def _built(
    registered: tuple[Callable[..., Any], ...], config: DefenseConfig, tiles: int
) -> Defense:
    """The same object for the same defence: JAX compiles again for every new function.

    Of what is registered under the names in the configuration, too: others may be next time.
    """
    defense: Defense = registered[0](config, tiles)
    if config.decoys:
        defense = with_decoys(defense, config.decoys)
    if config.noise:
        defense = with_noise(defense, config.noise)
    if config.blinding:
        defense = with_blinding(defense, config.blinding)
    if config.wire != "float32":
        defense = with_rounding(defense, config.wire)
    return dispersed(defense, config.clouds)
