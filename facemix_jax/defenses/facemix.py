"""FaceMix (paper, section 3), and no defence at all, which is plain training."""

import functools

from facemix_jax import _validate, mixing
from facemix_jax._types import Array, RngKey
from facemix_jax.defenses.base import Defense, DefenseCost


def facemix(
    *,
    group_size: int = 8,
    family: str = "haar",
    condition: float = 10.0,
    shuffle: bool = True,
    deal_blocks: int = 0,
) -> Defense:
    """Mixes groups of activations with fresh secret matrices.

    Args:
        group_size: ``M``, the paper's ``S_G``.
        family: one of ``mixing.FAMILIES``; ``haar`` is our reading of the paper's.
        condition: of the family ``conditioned``: the bound on the condition number.
        shuffle: shuffle mixtures across groups before sending (section 3.5).
        deal_blocks: deal rows to groups anew in each of so many blocks (tiles), as
            ``mixing.sample_mix_key`` does; 0 for groups of consecutive rows, as in the paper.

    Raises:
        UsageError: the group is smaller than 2 or the family unknown.
    """
    if group_size < 2:
        raise _validate.UsageError(
            f"group_size is {group_size}, but mixing needs at least 2 images in a group. "
            f"Use 2 or more, or the defence 'none'."
        )
    _validate.one_of(mixing.FAMILIES, family=family)
    bounded = mixing.conditioned(condition)
    draw = bounded if family == "conditioned" else mixing.FAMILIES[family]

    def init(rng_key: RngKey, batch_size: int, training: bool) -> mixing.MixKey:
        _validate.divides(group_size, divisor_name="group_size", batch_size=batch_size)
        return mixing.sample_mix_key(
            rng_key,
            batch_size // group_size,
            group_size,
            family=draw,
            shuffle=shuffle and not training,
            deal_blocks=deal_blocks,
        )

    def cost(activation_elements: int, response_elements: int) -> DefenseCost:
        return DefenseCost(group_size * activation_elements, group_size * response_elements)

    return Defense(
        "facemix",
        group_size,
        init,
        mixing.mix,
        mixing.unmix,
        cost,
        orthogonal=family not in mixing.NOT_ORTHOGONAL,
        dealt=deal_blocks > 0,
    )


@functools.cache
def none() -> Defense:
    """No defence: the cloud sees the activations themselves."""

    def init(rng_key: RngKey, batch_size: int, training: bool) -> tuple[()]:
        return ()

    def identity(secret: tuple[()], x: Array) -> Array:
        return x

    return Defense("none", 1, init, identity, identity, lambda z, y: DefenseCost(0, 0), False)
