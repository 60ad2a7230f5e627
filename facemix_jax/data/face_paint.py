"""The brushes of the face drawing: soft shapes, blending, textures."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax._types import Array

Rgb = tuple[Array, Array, Array]
"""Three planes ``[H, W]`` (or scalars), values in [0, 1]."""


def rgb(red: float, green: float, blue: float) -> Rgb:
    """A colour."""
    return jnp.float32(red), jnp.float32(green), jnp.float32(blue)


def mix_colours(first: Rgb, second: Rgb, share: Array) -> Rgb:
    """``first`` where ``share`` is 0, ``second`` where it is 1."""
    r, g, b = (a + share * (c - a) for a, c in zip(first, second, strict=True))
    return r, g, b


def scale(colour: Rgb, factor: Array | float) -> Rgb:
    """Brighter or darker."""
    r, g, b = (channel * factor for channel in colour)
    return r, g, b


def choose(value: Array, limits: tuple[float, ...], colours: tuple[Rgb, ...]) -> Rgb:
    """The first colour below the first limit, the second below the second, and so on."""
    index = jnp.sum(value > jnp.asarray(limits, jnp.float32))
    r, g, b = (jnp.stack(channel)[index] for channel in zip(*colours, strict=True))
    return r, g, b


def hue(angle: Array, saturation: Array | float, value: Array | float) -> Rgb:
    """A colour from an angle in turns."""

    def channel(offset: float) -> Array:
        phase = jnp.abs((angle + offset) % 1.0 * 6.0 - 3.0) - 1.0
        return value * (1.0 - saturation + saturation * jnp.clip(phase, 0.0, 1.0))

    return channel(0.0), channel(2 / 3), channel(1 / 3)


def cover(distance: Array, softness: Array | float) -> Array:
    """1 inside (negative distance), 0 outside, a ramp of width ``softness`` between."""
    return jnp.clip(0.5 - distance / softness, 0.0, 1.0)


def ellipse(x: Array, y: Array, rx: Array | float, ry: Array | float) -> Array:
    """First-order distance to an ellipse at the origin, negative inside."""
    u, v = x / rx, y / ry
    slope = jnp.sqrt((u / rx) ** 2 + (v / ry) ** 2 + 1e-4)
    return (u * u + v * v - 1.0) / (2.0 * slope)


def blob(x: Array, y: Array, rx: Array | float, ry: Array | float) -> Array:
    """A smooth bump, 1 at the origin and 0 outside the ellipse."""
    u, v = x / rx, y / ry
    return jnp.square(jnp.maximum(0.0, 1.0 - u * u - v * v))


def slope(x: Array, y: Array, rx: Array | float, ry: Array | float) -> tuple[Array, Array]:
    """The two derivatives of ``blob``."""
    u, v = x / rx, y / ry
    steep = -4.0 * jnp.maximum(0.0, 1.0 - u * u - v * v)
    return steep * u / rx, steep * v / ry


def wave(phase: Array) -> Array:
    """A cheap cosine of a phase in turns: within 6% of ``cos(2 pi phase)``."""
    triangle = 1.0 - 4.0 * jnp.abs(phase - jnp.round(phase))
    return triangle * (1.5 - 0.5 * triangle * triangle)


def smoothstep(low: float, high: float, value: Array) -> Array:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = jnp.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def when(needed: Array, layer: Callable[..., Rgb], frame: Any, picture: Rgb) -> Rgb:
    """``layer(frame, picture)`` where ``needed``, else ``picture`` as it is."""
    return jax.lax.cond(needed, layer, lambda _, unchanged: unchanged, frame, picture)
