"""A network split into pre (edge), main (cloud) and post (edge): equation 1 of the paper.

A network is a list of named units, each a Flax module from ``[B, ...]`` to ``[B, ...]``, and a
head. ``cut`` units run before mixing; the head is post; the rest is main. Units keep their
names wherever the cut lies, so the variables of one cut can be dealt out again for another.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from facemix_jax import _validate
from facemix_jax._types import Array, HostArray, ImageSize, RngKey, Variables
from facemix_jax.models.initialization import scaled_normal
from facemix_jax.models.pure import evaluate


class Segment(NamedTuple):
    """One part of a split network: pure functions of its own variables.

    Attributes:
        init: ``(rng_key, x) -> variables``; ``x`` an array or ``jax.ShapeDtypeStruct``.
        apply: ``(variables, x) -> y``, with running BatchNorm statistics.
        train: ``(variables, x) -> (y, variables)``, with the batch's BatchNorm statistics; what
            comes back carries the updated running ones.
        layers: name and ``apply`` of each unit, in order; every one takes the variables of the
            whole segment, and one after another they are ``apply``.
    """

    init: Callable[[RngKey, Any], dict[str, Any]]
    apply: Callable[[Variables, Array], Array]
    train: Callable[[Variables, Array], tuple[Array, dict[str, Any]]]
    layers: tuple[tuple[str, Callable[[Variables, Array], Array]], ...] = ()

    def __call__(self, variables: Variables, x: Array) -> Array:
        """Inference: ``apply``."""
        return self.apply(variables, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What a split network looks like from outside.

    Attributes:
        name: registry name, ``resnet18`` or ``vgg16``.
        cut: units on the edge before mixing.
        unit_names: all units in order; the cut lies after ``unit_names[:cut]``.
        image_size: height, width of the input.
        activation_shape: ``(H, W, C)`` of what pre sends, per row.
        response_shape: ``(D,)`` of what main returns, per row.
        logits_shape: ``(K, classes)``.
        grid: tiles down and across that pre's map is cut into. Pre returns ``[T * B, ...]``, tile
            by tile: row ``t * B + b``.
    """

    name: str
    cut: int
    unit_names: tuple[str, ...]
    image_size: ImageSize
    activation_shape: tuple[int, ...]
    response_shape: tuple[int, ...]
    logits_shape: tuple[int, int]
    grid: tuple[int, int] = (1, 1)

    @property
    def tiles(self) -> int:
        """``T``, rows that each example becomes between pre and post."""
        return self.grid[0] * self.grid[1]


class SplitModel(NamedTuple):
    """Four pure functions over ``{"pre": ..., "main": ..., "post": ...}``.

    Attributes:
        init: ``rng_key -> variables`` of all three segments; the same ``rng_key`` gives the same
            weights whatever the cut.
        pre: images float ``[B, H, W, 3]``, normalised, to activations ``[T * B, h, w, C]``.
        main: activations to features ``[T * B, D]``.
        post: features to logits float32 ``[B, K, classes]``.
        spec: shapes and names.
    """

    init: Callable[[RngKey], dict[str, Any]]
    pre: Segment
    main: Segment
    post: Segment
    spec: Spec


class Unit(Protocol):
    """Builds one named unit of a network."""

    def __call__(self, *, name: str) -> nn.Module:
        """Returns the module, whose ``__call__`` takes ``(x, train)``."""
        ...


class _Chain(nn.Module):
    """Named units one after another."""

    units: Sequence[tuple[str, Unit]]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for name, unit in self.units:
            x = unit(name=name)(x, train)
        return x


class Head(nn.Module):
    """The final linear layer: ``[B, D]`` to ``[B, K, classes]``, in float32."""

    num_attributes: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Logits; ``train`` changes nothing."""
        dense = nn.Dense(
            self.num_attributes * self.num_classes,
            kernel_init=scaled_normal(1.0, "in"),
            name="fc",
        )
        logits = dense(x.astype(jnp.float32))
        return logits.reshape(x.shape[0], self.num_attributes, self.num_classes)


class Centre(nn.Module):
    """Subtracts the mean over examples, position by position: ``[B, ...]`` to ``[B, ...]``.

    What all faces share enters every mixture with a random weight, the sum of a row of the
    matrix, and unmixing returns a constant ``c`` as ``A^T 1 c``. Before mixing and after main
    this takes both away; in the head, the bias makes up for it. Training subtracts the batch's
    mean and keeps a running one for inference, as BatchNorm does.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``x`` without the mean."""
        running = self.variable("batch_stats", "mean", jnp.zeros, x.shape[1:], jnp.float32)
        mean = running.value
        if train:
            mean = jax.lax.stop_gradient(jnp.mean(x, axis=0, dtype=jnp.float32))
            running.value = 0.9 * running.value + 0.1 * mean
        return x - mean[None].astype(x.dtype)


def cut_tiles(x: Array, tile: tuple[int, int]) -> Array:
    """Cuts maps into tiles, each a row of its own: ``[B, H, W, C]`` to ``[T * B, h, w, C]``.

    Row ``t * B + b`` is tile ``t`` of example ``b``, so that groups of consecutive rows hold one
    tile of several examples wherever the group size divides ``B``. The last tiles are filled up
    with zeros.

    Args:
        x: maps.
        tile: height, width of a tile.
    """
    batch, height, width, channels = x.shape
    h, w = tile
    down, across = -(-height // h), -(-width // w)
    x = jnp.pad(x, ((0, 0), (0, down * h - height), (0, across * w - width), (0, 0)))
    x = x.reshape(batch, down, h, across, w, channels).transpose(1, 3, 0, 2, 4, 5)
    return x.reshape(down * across * batch, h, w, channels)


def put_tiles_back(rows: Array, grid: tuple[int, int]) -> Array:
    """Undoes ``cut_tiles``: ``[T * B, h, w, C]`` to ``[B, down * h, across * w, C]``.

    Args:
        rows: tiles.
        grid: tiles down and across.
    """
    _, h, w, channels = rows.shape
    maps = rows.reshape(*grid, -1, h, w, channels).transpose(2, 0, 3, 1, 4, 5)
    return maps.reshape(-1, grid[0] * h, grid[1] * w, channels)


def side_by_side(rows: Array, tiles: int) -> Array:
    """Features of the tiles of each example together: ``[T * B, D]`` to ``[B, T * D]``."""
    return rows.reshape(tiles, -1, rows.shape[1]).swapaxes(0, 1).reshape(-1, tiles * rows.shape[1])


class _CutTiles(nn.Module):
    tile: tuple[int, int]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return cut_tiles(x, self.tile)


class _SideBySide(nn.Module):
    tiles: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return side_by_side(x, self.tiles)


def with_prior(variables: Variables, rates: HostArray) -> dict[str, Any]:
    """Starts the head's bias at the classes' frequencies, which training would be slow to find.

    Args:
        variables: ``{"pre", "main", "post"}``.
        rates: float ``[K]``, share of examples that have each attribute (class 1 of two).

    Returns:
        New variables; logits start at ``log(1 - rate)`` and ``log(rate)`` for constant features.
    """
    rates = np.clip(np.asarray(rates, np.float32), 1e-3, 1 - 1e-3)
    bias = jnp.asarray(np.stack([np.log(1 - rates), np.log(rates)], axis=-1).ravel())
    head = variables["post"]["params"]["head"]
    post = {"params": {"head": {"fc": {**head["fc"], "bias": bias}}}}
    return {**variables, "post": post}


def _segment(units: Sequence[tuple[str, Unit]]) -> Segment:
    chain = _Chain(tuple(units))

    def init(rng_key: RngKey, x: Any) -> dict[str, Any]:
        # Lazily: nothing but the parameters is computed.
        return dict(chain.lazy_init(rng_key, jax.ShapeDtypeStruct(x.shape, x.dtype), False))

    def apply(variables: Variables, x: Array) -> Array:
        return evaluate(chain, variables, x, False)

    def train(variables: Variables, x: Array) -> tuple[Array, dict[str, Any]]:
        y, updates = chain.apply(variables, x, True, mutable=["batch_stats"])
        return y, {**variables, **updates}

    def layer(unit: tuple[str, Unit]) -> Callable[[Variables, Array], Array]:
        alone = _Chain((unit,))
        return lambda variables, x: evaluate(alone, variables, x, False)

    return Segment(init, apply, train, tuple((unit[0], layer(unit)) for unit in units))


def _grid(
    units: Sequence[tuple[str, Unit]], image_size: ImageSize, tile: tuple[int, int]
) -> tuple[int, int]:
    pre = _segment(units)
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    variables = jax.eval_shape(pre.init, jax.random.key(0), image)
    height, width = jax.eval_shape(pre.apply, variables, image).shape[1:3]
    if not (0 < tile[0] <= height and 0 < tile[1] <= width):
        raise _validate.UsageError(
            f"tile is {tile[0]}x{tile[1]} (height x width), but the map after the cut is "
            f"{height}x{width}. Use a tile between 1x1 and that."
        )
    return -(-height // tile[0]), -(-width // tile[1])


def split(
    units: Sequence[tuple[str, Unit]],
    head: Unit,
    *,
    name: str,
    cut: int,
    last_cut: int,
    image_size: ImageSize,
    smallest: int = 1,
    centre: bool = False,
    tile: tuple[int, int] | None = None,
) -> SplitModel:
    """Splits a network after its first ``cut`` units.

    Args:
        units: names and builders of all units but the head, in order.
        head: builder of the final linear layer.
        name: of the network, for messages and checkpoints.
        cut: how many units run on the edge before mixing.
        last_cut: the largest cut that leaves activations to mix.
        image_size: height, width.
        smallest: height or width that the network takes.
        centre: whether pre and main end with ``Centre``; not in the paper.
        tile: height, width of the tiles that pre's map is cut into (``cut_tiles``), None for the
            whole map; not in the paper.

    Raises:
        UsageError: ``cut``, ``image_size`` or ``tile`` is out of range.
    """
    unit_names = tuple(unit_name for unit_name, _ in units)
    if not 0 <= cut <= last_cut:
        listing = ", ".join(f"{i + 1} {n}" for i, n in enumerate(unit_names[:last_cut]))
        raise _validate.UsageError(
            f"cut is {cut}, but {name} can be cut from 0 (the image itself) to {last_cut}: "
            f"after {listing}. Choose one of these."
        )
    _validate.pair(image_size=image_size, tile=(1, 1) if tile is None else tile)
    if min(image_size) < smallest:
        raise _validate.UsageError(
            f"image_size is {image_size[0]}x{image_size[1]} (height x width), but {name} needs at "
            f"least {smallest} pixels a side. Use larger images."
        )
    pre_ends: list[tuple[str, Unit]] = [("pre_centre", Centre)] if centre else []
    main_ends: list[tuple[str, Unit]] = [("main_centre", Centre)] if centre else []
    post_begins: list[tuple[str, Unit]] = []
    grid = (1, 1)
    if tile is not None:
        grid = _grid(units[:cut], image_size, tile)
        pre_ends.append(("tiles", functools.partial(_CutTiles, tile)))
        post_begins.append(("tiles", functools.partial(_SideBySide, grid[0] * grid[1])))
    pre = _segment([*units[:cut], *pre_ends])
    main = _segment([*units[cut:], *main_ends])
    post = _segment([*post_begins, ("head", head)])

    shapes = [jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)]
    for segment in (pre, main, post):
        variables = jax.eval_shape(segment.init, jax.random.key(0), shapes[-1])
        shapes.append(jax.eval_shape(segment.apply, variables, shapes[-1]))
    _, activation, response, logits = (s.shape[1:] for s in shapes)

    def init_all(rng_key: RngKey) -> dict[str, Any]:
        return {
            "pre": pre.init(rng_key, shapes[0]),
            "main": main.init(rng_key, shapes[1]),
            "post": post.init(rng_key, shapes[2]),
        }

    spec = Spec(
        name=name,
        cut=cut,
        unit_names=unit_names,
        image_size=image_size,
        activation_shape=activation,
        response_shape=response,
        logits_shape=logits,
        grid=grid,
    )
    return SplitModel(init_all, pre, main, post, spec)
