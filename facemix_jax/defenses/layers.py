"""What is put around mixing: decoys, additive blinding, rounding, and several clouds.

Each takes a defence and returns one. None is a cipher: ``docs/defenses.md`` says what the strongest
attacks make of each, and what it costs the owner.
"""

from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax import _validate, mixing
from facemix_jax._types import Array, RngKey
from facemix_jax.defenses.base import Defense, DefenseCost, rows_of, unless_none
from facemix_jax.defenses.noisy import NoisySecret

WIRES: dict[str, int | None] = {"float32": None, "bfloat16": None, "int8": 127, "int4": 7}
"""Largest integer sent, by what travels. int8 is rounded as ``serving.wire`` rounds it; int4
follows the same rule; no client sends it, so runs with it are refused there."""


def with_decoys(defense: Defense, decoys: int) -> Defense:
    """Mixes members into every group that no one asked about, and throws their responses away.

    Decoys are Gaussian, with the mean and the deviation that the request's activations have at
    each position. Members from a secret pool of pictures need no code: they are images of the
    request whose answers nobody reads, at the price of pre for each of them.

    To gradient ICA they are more members, no less. Several copies of one image count as one, and
    their decoys are that image: ``inference.infer``, which fills groups up, refuses to.

    Args:
        defense: mixes groups of ``M`` rows: images and decoys together.
        decoys: of them, below ``M``.

    Raises:
        UsageError: there is no room for an image; of ``init``, one image is sent, which has no
            deviation.
    """
    rows, total = rows_of(defense), defense.group_size
    _validate.in_range(1, total - 1, decoys=decoys)
    size = total - decoys

    def init(rng_key: RngKey, batch_size: int, training: bool) -> NoisySecret:
        _validate.divides(size, divisor_name="group_size", batch_size=batch_size)
        if batch_size < 2:
            raise _validate.UsageError(
                "batch_size is 1, and decoys as a single image would have them are that image "
                "itself. Send 2 images or more at a time."
            )
        inner_key, noise_key = jax.random.split(rng_key)
        return NoisySecret(defense.init(inner_key, batch_size // size * total, training), noise_key)

    def protect(secret: NoisySecret, z: Array) -> Array:
        images = mixing.group(z, size)
        seen = jax.lax.stop_gradient(z)
        shape = (len(images), decoys, *z.shape[1:])
        drawn = jax.random.normal(secret.noise_key, shape, z.dtype)
        company = jnp.mean(seen, axis=0)[None, None] + jnp.std(seen, axis=0)[None, None] * drawn
        members = jnp.concatenate([images, company], axis=1)
        return defense.protect(secret.inner, members.reshape(-1, *z.shape[1:]))

    def recover(secret: NoisySecret, y: Array) -> Array:
        members = mixing.group(defense.recover(secret.inner, y), total)
        return members[:, :size].reshape(-1, *members.shape[2:])

    def cost(activation_elements: int, response_elements: int) -> DefenseCost:
        # The members cost the same; the images pay for all.
        inner = defense.cost(activation_elements, response_elements)
        return DefenseCost(
            round(inner.protect_macs * total / size),
            round(inner.recover_macs * total / size),
            inner.rows_sent * total / size,
            inner.rows_ahead * total / size,
        )

    return defense._replace(
        group_size=size, init=init, protect=protect, recover=recover, cost=cost, rows=rows
    )


def with_blinding(defense: Defense, blinding: float) -> Defense:
    """Sends rows plus Gaussian ones whose responses the edge knows already, and subtracts these.

    Protected rows ``x`` are brought to unit deviation; with ``r`` drawn before the request,
    ``x + r`` is sent and ``main(x + r) - main(r)`` taken for ``main(x)``. That is right only where
    main is additive, which a network is at best as far as it was trained for this. The edge runs
    main on ``r`` itself: the work moves to an idle hour, and is not saved (as in Slalom, Tramer
    and Boneh 2019, whose blinding is uniform and exact where this one is neither).

    ``r`` hides rows statistically, as noise of the same size does, and must serve once.

    Answers come in units of the whole request's deviation: in louder company an image's are
    smaller, by one factor for all answers of the request. A fixed unit would not do that, but a
    network could then drown ``r``, which is drawn before rows are seen, by sending larger numbers.

    Args:
        defense: what makes ``x``.
        blinding: standard deviation of ``r``, over that of the rows.

    Raises:
        UsageError: ``blinding`` is not positive.
    """
    _validate.positive(blinding=blinding)
    rows = rows_of(defense)

    def init(rng_key: RngKey, batch_size: int, training: bool) -> NoisySecret:
        inner_key, noise_key = jax.random.split(rng_key)
        return NoisySecret(defense.init(inner_key, batch_size, training), noise_key)

    def protect(secret: NoisySecret, z: Array) -> Array:
        x = defense.protect(secret.inner, z).astype(jnp.float32)
        blind = blinding * jax.random.normal(secret.noise_key, x.shape)
        return jnp.concatenate([x / (jnp.std(x) + 1e-12) + blind, blind])

    def recover(secret: NoisySecret, y: Array) -> Array:
        sent, ahead = jnp.split(y, 2)
        return defense.recover(secret.inner, sent - ahead)

    def cost(activation_elements: int, response_elements: int) -> DefenseCost:
        inner = defense.cost(activation_elements, response_elements)
        added = round(inner.rows_sent * activation_elements)
        return inner._replace(
            protect_macs=inner.protect_macs + added, rows_ahead=inner.rows_sent + inner.rows_ahead
        )

    return defense._replace(
        init=init,
        protect=protect,
        recover=recover,
        cost=cost,
        rows=rows._replace(ahead=rows.sent + rows.ahead, blinding=blinding),
        exact=False,
    )


def with_rounding(defense: Defense, wire: str) -> Defense:
    """Rounds what is sent; in training, gradients pass as if nothing were rounded.

    Rows that are run ahead stay on the edge as they are.

    Args:
        defense: makes what is sent.
        wire: one of ``WIRES``.

    Raises:
        UsageError: ``wire`` is unknown.
    """
    _validate.one_of(WIRES, wire=wire)
    rows = rows_of(defense)

    def protect(secret: Any, z: Array) -> Array:
        made = defense.protect(secret, z)
        sent, ahead = jnp.split(made, [len(made) * rows.sent // (rows.sent + rows.ahead)])
        straight_through = sent - jax.lax.stop_gradient(sent)  # zeros that carry the gradient
        arrived = jax.lax.stop_gradient(rounded(sent, wire)) + straight_through
        return jnp.concatenate([arrived, ahead])

    name = unless_none(defense.name, "rounding")
    return defense._replace(name=name, protect=protect, exact=False)


def rounded(x: Array, wire: str) -> Array:
    """What arrives of ``x`` float32 ``[B, H, W, C]``.

    Integers have one scale for each row and channel, which maps the largest value to the largest
    integer.

    Args:
        x: what is sent.
        wire: one of ``WIRES``.
    """
    levels = WIRES[wire]
    if wire == "float32":
        return x
    if levels is None:
        return x.astype(wire).astype(x.dtype)
    scale = jnp.abs(x).max((1, 2), keepdims=True) / levels
    return scale * jnp.clip(jnp.rint(x / jnp.where(scale > 0, scale, 1)), -levels, levels)


def dispersed(defense: Defense, clouds: int) -> Defense:
    """Sends each cloud an equal share of every group's rows: none sees all of a group.

    Nothing changes for the owner: main treats every row alike, whoever runs it. What one cloud
    sees is less only as long as no other tells it: clouds that collude see their rows together.

    Args:
        defense: mixes.
        clouds: among which the rows of each group are divided.

    Raises:
        UsageError: the rows of a group cannot be divided among them.
    """
    _validate.positive(clouds=clouds)
    rows = rows_of(defense)
    _validate.divides(clouds, divisor_name="clouds", rows_of_a_group=rows.seen)
    if clouds == 1:
        return defense
    # A part of an orthogonal matrix is none.
    return defense._replace(rows=rows._replace(seen=rows.seen // clouds), orthogonal=False)
