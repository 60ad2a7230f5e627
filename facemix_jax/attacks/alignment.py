"""Tile keys undone by the likeness of neighbouring tiles.

Where a map is cut into tiles with a matrix each, neighbouring tiles of one image still agree across
their border, and those of different images do not. How tiles of single images vary together is
public: the attacker measures it on images of its own. Under Gaussian statistics the likeliest
rotation of one tile, given those of all others, is an orthogonal Procrustes problem (Schonemann
1966, "A generalized solution of the orthogonal Procrustes problem"), and going round the tiles
brings all of them under one common rotation: what is left is the separation of whole maps. This
needs no value that is not Gaussian.

It presumes that a group holds the same images in every tile.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import AttackConfig, Recording, Target
from facemix_jax.attacks.groups import auxiliary_by_tile, needs_groups_of_images, noise_of
from facemix_jax.attacks.separation import separate
from facemix_jax.attacks.unmixing import Separation, matmul, nearest_orthogonal, principal_axes
from facemix_jax.models.split import put_tiles_back

THREAT_MODEL = (
    "knows which mixtures form a group, that it holds the same images in every tile, and that the "
    "mixing is orthogonal; has own images to learn how tiles vary together; no key"
)

_AUXILIARY = 8192
"""The attacker's own images."""

_MOST_AXES = 60
"""Directions of a tile's row that are looked at."""

_STARTS = 3
_ROUNDS = 40


def precision(target: Target, rng_key: RngKey) -> tuple[HostArray, HostArray]:
    """How the tiles of one image vary together, noise included.

    Args:
        target: the system; its auxiliary images are the attacker's own.
        rng_key: draws a rehearsal's secret, which shows how much noise there is; consumed.

    Returns:
        Axes float32 ``[T, P, D]`` of the tiles' rows, and the inverse of the second moments along
        them, float32 ``[T, D, T, D]``. Second moments: what all images share is a likeness, too.
    """
    own = auxiliary_by_tile(target, _AUXILIARY)
    tiles, images, size = own.shape
    count = min(_MOST_AXES, size, images // (2 * tiles))
    axes = np.stack([principal_axes(jnp.asarray(rows), count) for rows in own])
    along = np.einsum("tnp,tpd->ntd", own, axes).reshape(images, -1)
    moments = along.T @ along / len(along)
    moments += noise_of(target, rng_key) ** 2 * np.eye(len(moments), dtype=moments.dtype)
    moments += 1e-4 * np.trace(moments) / len(moments) * np.eye(len(moments), dtype=moments.dtype)
    inverse = np.linalg.inv(moments.astype(np.float64)).astype(np.float32)
    return axes, inverse.reshape(tiles, count, tiles, count)


@jax.jit
def align(rows: Array, inverse: Array, starts: Array) -> Array:
    """Rotations that bring the tiles of one group under a common one.

    Args:
        rows: float32 ``[T, M, D]``, mixtures along the axes.
        inverse: float32 ``[T, D, T, D]``.
        starts: orthogonal ``[S, T, M, M]``.

    Returns:
        ``[T, M, M]``, the likeliest of all starts.
    """
    tiles = len(rows)

    def turn(rotations: Array, tile: Array, others: Array) -> Array:
        """The likeliest rotation of one tile, given those of some others."""
        turned = matmul(rotations, rows) * others.astype(rows.dtype)[:, None, None]
        pull = -jnp.einsum("smd,sde->me", turned, inverse[:, :, tile], precision="highest")
        return rotations.at[tile].set(nearest_orthogonal(matmul(pull, rows[tile].T)))

    def grow(rotations: Array, tile: Array) -> tuple[Array, None]:
        """From the tiles before alone: those after are random so far."""
        return turn(rotations, tile, jnp.arange(tiles) < tile), None

    def improve(rotations: Array, tile: Array) -> tuple[Array, None]:
        return turn(rotations, tile, jnp.arange(tiles) != tile), None

    def from_start(start: Array) -> tuple[Array, Array]:
        rotations, _ = jax.lax.scan(grow, start, jnp.arange(1, tiles))
        order = jnp.tile(jnp.arange(tiles), _ROUNDS)
        rotations, _ = jax.lax.scan(improve, rotations, order)
        turned = matmul(rotations, rows)
        unlikely = jnp.einsum("smd,sdte,tme->", turned, inverse, turned, precision="highest")
        return rotations, -unlikely

    rotations, likelihoods = jax.lax.map(from_start, starts)
    return rotations[jnp.argmax(likelihoods)]


def common_rotation(
    mixtures: Array, axes: Array, inverse: Array, *, rng_key: RngKey
) -> tuple[Array, Array]:
    """Aligns the tiles of every group.

    Args:
        mixtures: float ``[T * G, M, h, w, C]``, tile by tile.
        axes: from ``precision``.
        inverse: from ``precision``.
        rng_key: draws the starts; consumed.

    Returns:
        Rotations ``[T, G, M, M]``, and the rows that they turn, ``[T, G, M, h * w * C]``.
    """
    tiles, size = len(axes), mixtures.shape[1]
    by_tile = mixtures.astype(jnp.float32).reshape(tiles, -1, size, axes.shape[1])
    rotations = []
    for group in range(by_tile.shape[1]):
        rows = jnp.einsum("tmp,tpd->tmd", by_tile[:, group], axes, precision="highest")
        group_key = jax.random.fold_in(rng_key, group)
        starts = jax.random.orthogonal(group_key, size, (_STARTS, tiles))
        rotations.append(align(rows, inverse, starts))
    return jnp.stack(rotations, axis=1), by_tile


def separate_under_common(
    common: Array,
    by_tile: Array,
    shape: tuple[int, ...],
    grid: tuple[int, int],
    *,
    rng_key: RngKey,
) -> Separation:
    """Separates the whole maps of aligned tiles by gradient ICA.

    Args:
        common: from ``common_rotation``, and so is ``by_tile``.
        by_tile: float32 ``[T, G, M, h * w * C]``.
        shape: ``(h, w, C)``.
        grid: tiles down and across.
        rng_key: draws the starts; consumed.

    Returns:
        Of every (tile, group), tile by tile. Source ``k`` of a group is meant to be of the same
        image in every tile.
    """
    tiles, groups, size, _ = by_tile.shape
    maps = put_tiles_back(matmul(common, by_tile).reshape(-1, *shape), grid)
    found = separate(maps.reshape(-1, size, *maps.shape[1:]), rng_key=rng_key)
    unmixing = matmul(found.unmixing[None], common)
    return Separation(
        unmixing.reshape(-1, size, size),
        matmul(unmixing, by_tile).reshape(tiles * groups, size, *shape),
        jnp.tile(found.iterations, tiles),
        jnp.tile(found.converged, tiles),
    )


def separate_aligned(
    mixtures: Array, axes: Array, inverse: Array, grid: tuple[int, int], *, rng_key: RngKey
) -> Separation:
    """Aligns the tiles of every group, then separates the whole maps.

    Args:
        mixtures: float ``[T * G, M, h, w, C]``, tile by tile.
        axes: from ``precision``.
        inverse: from ``precision``.
        grid: tiles down and across.
        rng_key: draws the starts; consumed.

    Returns:
        As ``separate_under_common``.
    """
    align_key, separate_key = jax.random.split(rng_key)
    common, by_tile = common_rotation(mixtures, axes, inverse, rng_key=align_key)
    return separate_under_common(common, by_tile, mixtures.shape[2:], grid, rng_key=separate_key)


def _prepare(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> blind.Separate:
    axes, inverse = (jnp.asarray(x) for x in precision(target, rng_key))
    grid = target.model.spec.grid
    return functools.partial(separate_aligned, axes=axes, inverse=inverse, grid=grid)


def _unsuitable(target: Target) -> str | None:
    tiles, own = target.model.spec.tiles, len(target.source.splits[target.auxiliary_split])
    if tiles == 1:
        return "The maps are not cut into tiles, so that nothing is to be aligned."
    if own < 2 * tiles:
        return f"How {tiles} tiles vary together takes {2 * tiles} own images, but there are {own}."
    return needs_groups_of_images(target) or blind.needs_orthogonal(target)


ALIGNMENT = blind.attack("alignment", THREAT_MODEL, _prepare, unsuitable=_unsuitable)
"""Tiles under one rotation, then gradient ICA; grouping granted."""
