"""What the layers of a face drawing share: coordinates, light and colours."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax._types import Array, ImageSize
from facemix_jax.data.face_model import Face
from facemix_jax.data.face_paint import (
    Rgb,
    choose,
    mix_colours,
    rgb,
    scale,
)

_EYE_ROW, _EYE_DISTANCE = 111 / 218, 39 / 218
"""Where CelebA's alignment puts the eyes, in image heights."""


class Frame(NamedTuple):
    """One picture's coordinates, in distances between the eyes, and what layers share.

    Attributes:
        face: what to draw.
        always: bool ``[]``, true; a condition that the compiler cannot see through.
        px: ``[H, W]``, x of the picture, for shoulders and background.
        py: ``[H, W]``, y of the picture.
        x: ``[H, W]``, x of the head, moved and tilted.
        y: ``[H, W]``, y of the head.
        fx: ``[H, W]``, x of the features on the head, as it turns.
        fy: ``[H, W]``, y of the features.
        side: ``[H, W]``, -1 left and 1 right of the nose.
        soft: ``[]``, the width of an edge.
        grain: ``[H, W]``, noise with unit standard deviation.
        light: x and y of the unit vector towards the light.
        skin: colour.
        hair: colour.
    """

    face: Face
    always: Array
    px: Array
    py: Array
    x: Array
    y: Array
    fx: Array
    fy: Array
    side: Array
    soft: Array
    grain: Array
    light: tuple[Array, Array]
    skin: Rgb
    hair: Rgb


def make_frame(face: Face, image_size: ImageSize, texture: Array) -> Frame:
    """Coordinates and colours for ``face``; arguments as for ``face_drawing.draw``."""
    height, width = image_size
    unit = _EYE_DISTANCE * height
    rows = (jnp.arange(height, dtype=jnp.float32) + 0.5 - _EYE_ROW * height) / unit
    columns = (jnp.arange(width, dtype=jnp.float32) + 0.5 - width / 2) / unit
    px, py = (
        jnp.broadcast_to(columns[None, :], image_size),
        jnp.broadcast_to(rows[:, None], image_size),
    )
    zoom, roll = 1.0 + 0.07 * face.posed("scale"), 0.10 * face.posed("roll")
    u = (px - 0.12 * face.posed("shift_x")) / zoom
    v = (py - 0.12 * face.posed("shift_y")) / zoom
    x = u * jnp.cos(roll) + v * jnp.sin(roll)
    y = v * jnp.cos(roll) - u * jnp.sin(roll)
    yaw, pitch = 0.16 * face.posed("yaw"), 0.06 * face.posed("pitch")
    bulge = jnp.maximum(0.0, 1.0 - 0.6 * x * x)
    fx = x - yaw * bulge
    fy = y - pitch * bulge
    grain = jax.lax.dynamic_slice(texture, (face.grain[0], face.grain[1]), image_size)
    return Frame(
        face=face, always=face.pose[0] >= -1.0, px=px, py=py, x=x, y=y, fx=fx, fy=fy,
        side=jnp.where(fx < 0, -1.0, 1.0),
        soft=jnp.float32(1.3 / unit),
        grain=grain,
        light=(0.65 * face.posed("light_x"), -0.35 + 0.3 * face.posed("light_y")),
        skin=_skin_colour(face),
        hair=_hair_colour(face),
    )  # fmt: skip


def _skin_colour(face: Face) -> Rgb:
    tone = 0.85 - 0.9 * jnp.square(face.shape("skin_tone", 0.0, 1.0))
    dark, middle, fair = rgb(0.42, 0.27, 0.20), rgb(0.80, 0.60, 0.47), rgb(0.96, 0.79, 0.69)
    colour = mix_colours(
        mix_colours(dark, middle, jnp.clip(2 * tone, 0.0, 1.0)),
        fair,
        jnp.clip(2 * tone - 1, 0.0, 1.0),
    )
    reddish = 0.03 * face.shape("skin_hue")
    colour = (colour[0] + reddish, colour[1], colour[2] - reddish)
    colour = mix_colours(colour, rgb(0.98, 0.91, 0.88), face.has("Pale_Skin"))
    return mix_colours(colour, rgb(0.94, 0.76, 0.66), 0.25 * face.has("Heavy_Makeup"))


def _hair_colour(face: Face) -> Rgb:
    tone = face.shape("hair_tone")
    other = choose(
        tone,
        (0.2, 0.7),
        (rgb(0.22, 0.15, 0.12), rgb(0.55, 0.26, 0.12), rgb(0.60, 0.47, 0.30)),
    )
    colour = other
    for name, named in (
        ("Black_Hair", rgb(0.07, 0.065, 0.075)),
        ("Blond_Hair", rgb(0.88, 0.73, 0.46)),
        ("Brown_Hair", rgb(0.38, 0.23, 0.13)),
        ("Gray_Hair", rgb(0.72, 0.72, 0.74)),
    ):
        colour = mix_colours(colour, named, face.has(name))
    return scale(colour, 1.0 + 0.12 * tone)


def head_width(face: Face) -> Array:
    """Half the width of the head at the cheeks."""
    return (
        face.shape("face_width", 0.97, 1.07)
        + 0.14 * face.has("Chubby")
        - 0.12 * face.has("Oval_Face")
    )
