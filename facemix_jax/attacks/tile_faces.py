"""Pictures of what was recovered tile by tile, and of the whole maps that an attacker assembles.

Separation of a tile does not say which of its rows belongs to which image. Two assemblies are
scored: the attacker's own, where row ``k`` of a group is taken for the same image in every tile, as
aligned tiles are meant to be; and one that is granted the right order and sign of every tile, which
no attacker has: an upper bound.
"""

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import AttackConfig, Recording, Target, by_group, truth_by_group
from facemix_jax.attacks.groups import noise_of
from facemix_jax.attacks.inversion import mean_image, train_decoder
from facemix_jax.attacks.tiles import whole
from facemix_jax.models.split import put_tiles_back


def by_image(rows: HostArray | Array, recording: Recording, grid: tuple[int, int]) -> HostArray:
    """Rows ``[R, h, w, C]`` in the order of ``recording.examples`` to maps ``[B, H, W, C]``."""
    rows = np.asarray(rows)
    tiles = grid[0] * grid[1]
    order = np.argsort(recording.examples.reshape(tiles, -1), axis=1, kind="stable")
    by_tile = rows.reshape(tiles, -1, *rows.shape[1:])
    ordered = by_tile[np.arange(tiles)[:, None], order]
    return np.asarray(put_tiles_back(jnp.asarray(ordered.reshape(rows.shape)), grid))


def assemble(sources: HostArray, truth: HostArray, tiles: int) -> HostArray:
    """The attacker's assembly: one order and sign for all tiles of a group, as the truth has them.

    Scoring grants both: rows of a Haar matrix are exchangeable, so that no one can know the order
    of the images of a request, and the sign shows in a picture.

    Args:
        sources: ``[T * G, M, h, w, C]``; source ``k`` of a group is one image's in every tile.
        truth: likewise, in the right order.
        tiles: ``T``.

    Returns:
        ``[T * G, M, h, w, C]`` in the order of the truth.
    """

    def together(rows: HostArray) -> HostArray:
        """``[G, M, T * P]``."""
        by_tile = rows.reshape(tiles, -1, rows.shape[1], int(np.prod(rows.shape[2:])))
        return by_tile.transpose(1, 2, 0, 3).reshape(by_tile.shape[1], rows.shape[1], -1)

    ordered = blind.matched(together(sources), together(truth))
    by_group = ordered.reshape(*ordered.shape[:2], tiles, -1)
    return by_group.transpose(2, 0, 1, 3).reshape(truth.shape)


def invert_tiles(
    target: Target,
    recording: Recording,
    separations: dict[str, tuple[HostArray, bool]],
    *,
    rng_key: RngKey,
    config: AttackConfig,
) -> tuple[dict[str, HostArray], HostArray]:
    """Pictures of what several separations gave, by one decoder.

    Args:
        target: the system; maps may be whole, too.
        recording: by tile.
        separations: name to sources ``[T * G, M, h, w, C]``, and whether order and sign of every
            tile are granted.
        rng_key: consumed.
        config: steps and batch size of the decoder.

    Returns:
        Name to pictures float32 ``[B, H, W, 3]`` in [0, 1], with ``floor`` (mixtures, granted),
        ``owner`` and ``blind`` (the mean image) added; and the decoder's losses.
    """
    noise_key, decoder_key = jax.random.split(rng_key)
    spec = target.model.spec
    truth = np.asarray(truth_by_group(recording.activations, recording))
    deviation = noise_of(target, noise_key) / float(jnp.std(recording.activations))
    inverter = train_decoder(
        whole(target),
        steps=config.steps,
        batch_size=config.batch_size,
        rng_key=decoder_key,
        most_noise=0.1 + deviation,
    )
    mixtures = np.asarray(by_group(recording.view.mixtures, recording))
    pictures = {}
    for name, (sources, granted) in {**separations, "floor": (mixtures, True)}.items():
        every_tile = 1 if granted else spec.tiles  # matched for itself
        ordered = assemble(sources, truth, every_tile)
        rows = ordered.reshape(-1, *truth.shape[2:])
        pictures[name] = inverter.invert(by_image(rows, recording, spec.grid))
    pictures["owner"] = inverter.invert(by_image(recording.owner_activations, recording, spec.grid))
    pictures["blind"] = np.broadcast_to(mean_image(target), recording.images.shape)
    return pictures, np.asarray(inverter.losses)
