"""The head of a face drawing: skin, eyes, brows, nose, mouth and beard."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax._types import Array
from facemix_jax.data.face_frame import Frame, head_width
from facemix_jax.data.face_model import Face
from facemix_jax.data.face_paint import (
    Rgb,
    blob,
    choose,
    cover,
    ellipse,
    hue,
    mix_colours,
    rgb,
    scale,
    slope,
    smoothstep,
    wave,
    when,
)


def head(f: Frame, picture: Rgb) -> Rgb:
    """Paints the head, without hair, over ``picture``."""
    face = f.face
    blush = blob(jnp.abs(f.fx) - 0.60, f.fy - 0.55, 0.42, 0.36)
    colour = mix_colours(
        f.skin,
        rgb(0.90, 0.36, 0.36),
        blush * (0.12 + 0.55 * face.has("Rosy_Cheeks")),
    )
    relief = _relief(f) * (1.0 + 0.009 * f.grain)
    relief = relief * _creases(f)
    colour = when(~face.is_("No_Beard"), _beard, f, colour)
    colour = when(f.always, _mouth, f, colour)
    colour = scale(colour, relief)
    colour = when(f.always, _nose_details, f, colour)
    colour = when(f.always, lambda f, colour: _eyes(f, colour, relief), f, colour)
    colour = when(f.always, _brows, f, colour)
    mask = cover(_jaw(f), f.soft)
    return mix_colours(picture, colour, mask)


def _jaw(f: Frame) -> Array:
    """Distance to the outline of the head, negative inside."""
    face, male = f.face, f.face.has("Male")
    middle = 0.05
    down = 1.62 + 0.09 * face.shape("chin_length") + 0.21 * face.has("Oval_Face") + 0.06 * male
    up = 1.40 + 0.06 * face.shape("forehead")
    square = (
        0.16 * face.shape("jaw")
        + 0.30 * male
        + 0.42 * face.has("Chubby")
        - 0.42 * face.has("Oval_Face")
        - 0.10
    )
    below = f.y > middle
    t = (f.y - middle) / jnp.where(below, down, up)
    k = jnp.where(below, square, 0.15)
    t2 = t * t
    width = head_width(face)
    value = jnp.square(f.x / width) + (1.0 - k) * t2 + k * t2 * t2 - 1.0
    across = f.x / (width * width)
    along = t * ((1.0 - k) + 2.0 * k * t2) / jnp.where(below, down, up)
    return value / (2.0 * jnp.sqrt(across * across + along * along + 1e-4))


def _relief(f: Frame) -> Array:
    """Brightness of the skin from its surface: an ellipsoid with bumps for the features."""
    face = f.face
    nx, ny = f.x / 1.12, (f.y - 0.1) / 1.85
    nose = _nose(f)
    bold = 1.0 + 0.5 * face.has("High_Cheekbones")
    ax, y = jnp.abs(f.fx), f.fy
    middle = jnp.float32(1.0)
    bumps = (  # height, slopes, and the side that mirrors those of paired bumps
        (jnp.float32(0.16), slope(nose.x, y - 0.40, 0.20, 0.62), middle),
        (jnp.float32(0.12), slope(nose.x, y - nose.tip, nose.width * 1.05, 0.18), middle),
        (0.10 * bold, slope(ax - 0.58, y - 0.50, 0.34, 0.34), f.side),
        (jnp.float32(-0.13), slope(ax - 0.42, y + 0.02, 0.38, 0.24), f.side),
        (jnp.float32(0.07), slope(ax - 0.42, y + 0.34, 0.5, 0.2), f.side),
        (jnp.float32(0.10), slope(f.fx, y - 1.46, 0.32, 0.24), middle),
        (jnp.float32(-0.05), slope(f.fx, y - 1.26, 0.40, 0.10), middle),
    )
    for height, (across, along), side in bumps:
        nx = nx - height * across * side
        ny = ny - height * along
    nz = jnp.sqrt(jnp.maximum(0.06, 1.0 - jnp.square(f.x / 1.15) - jnp.square((f.y - 0.1) / 1.9)))
    lx, ly = f.light
    lz = jnp.sqrt(1.0 - lx * lx - ly * ly)
    facing = (nx * lx + ny * ly + nz * lz) * jax.lax.rsqrt(nx * nx + ny * ny + nz * nz)
    strength = face.posed("light_strength", 0.35, 0.62)
    return 1.0 - strength + strength * 1.22 * jnp.maximum(0.0, facing)


def _creases(f: Frame) -> Array:
    """Folds, bags, wrinkles and hollows: a factor on the skin's brightness."""
    face = f.face
    old, smile = 1.0 - face.has("Young"), face.has("Smiling")
    ax = jnp.abs(f.fx)
    fold_x = 0.27 + 0.30 * jnp.clip(f.fy - 0.62, 0.0, 0.6) + 0.06 * smile
    fold = blob(ax - fold_x, f.fy - 0.86, 0.06, 0.30) * (0.08 + 0.37 * old + 0.16 * smile)
    bags = face.has("Bags_Under_Eyes")
    eye_x = ax - _eye_spacing(face)
    bag_y = f.fy - 0.24 + 0.35 * jnp.square(eye_x)
    bag = blob(eye_x, bag_y, 0.27, 0.055) * (0.04 + 0.54 * bags)
    puff = blob(eye_x, bag_y + 0.07, 0.22, 0.05) * 0.15 * bags
    rows = wave(4.6 * (f.fy + 0.12 * f.fx * f.fx) + face.shape("wrinkles", 0.0, 1.0))
    brow_lines = blob(f.fx, f.fy + 0.66, 0.7, 0.24) * jnp.maximum(0.0, rows - 0.35) * 0.55 * old
    crow = (
        blob(ax - 0.86, f.fy - 0.04, 0.13, 0.2)
        * jnp.maximum(0.0, wave(7.0 * (f.fy - 0.3 * (ax - 0.8))))
        * 0.45
        * old
    )
    hollow = (
        blob(ax - 0.72 + 0.25 * (f.fy - 0.86), f.fy - 0.92, 0.17, 0.36)
        * 0.26
        * face.has("High_Cheekbones")
    )
    bone = (
        blob(ax - 0.62, f.fy - 0.42 + 0.25 * (ax - 0.6), 0.27, 0.12)
        * 0.16
        * face.has("High_Cheekbones")
    )
    chin = 1.50 + 0.02 * face.shape("chin_length")
    second = (
        blob(f.fx, f.fy - chin + 0.32 * jnp.square(f.fx), 0.52, 0.075)
        * 0.60
        * face.has("Double_Chin")
    )
    return 1.0 - fold - bag - brow_lines - crow - hollow - second + puff + bone


def _eye_spacing(face: Face) -> Array:
    return 0.5 + 0.025 * face.shape("eye_spacing")


def _eyes(f: Frame, colour: Rgb, relief: Array) -> Rgb:
    face = f.face
    male, makeup = face.has("Male"), face.has("Heavy_Makeup")
    narrow = face.has("Narrow_Eyes")
    x = jnp.abs(f.fx) - _eye_spacing(face)
    y = f.fy + 0.12 * face.shape("eye_tilt") * x - 0.06 * x
    size = face.shape("eye_size", 0.93, 1.09) * (1.0 - 0.04 * male + 0.05 * makeup)
    half = 0.225 * size
    openness = (1.0 - 0.12 * face.has("Smiling") * (1.0 - narrow) - 0.58 * narrow) * size
    arc = 1.0 - jnp.square(x / half)
    upper = -y - 0.115 * openness * arc
    lower = y - 0.085 * openness * arc
    inside = cover(jnp.maximum(upper, lower), f.soft)

    lid = blob(x - 0.02, y + 0.13, 0.34, 0.17)
    shadow = hue(face.posed("accent_hue", 0.0, 1.0), 0.45, 0.42)
    colour = mix_colours(colour, shadow, lid * (0.75 * makeup))
    colour = scale(
        colour,
        1.0
        - 0.30
        * cover(jnp.abs(upper + 0.0 - 0.075) - 0.018, f.soft)
        * cover(jnp.abs(x) - 0.24, 0.1),
    )
    colour = scale(colour, 1.0 - 0.22 * blob(x + 0.20, y + 0.05, 0.16, 0.2))

    white = scale(rgb(0.95, 0.93, 0.92), 0.45 + 0.5 * relief)
    white = scale(white, 1.0 - 0.35 * cover(jnp.abs(upper) - 0.05, 0.06))
    colour = mix_colours(colour, white, inside)
    gx = f.side * x - 0.035 * face.posed("gaze_x") - 0.03 * face.posed("yaw")
    gy = y + 0.012 - 0.015 * face.posed("gaze_y")
    radius = jnp.sqrt(gx * gx + gy * gy + 1e-6)
    kind = face.shape("iris_hue", 0.0, 1.0)
    iris = choose(
        kind,
        (0.55, 0.72, 0.88),
        (
            rgb(0.24, 0.13, 0.07),
            rgb(0.42, 0.29, 0.12),
            rgb(0.30, 0.44, 0.58),
            rgb(0.32, 0.45, 0.28),
        ),
    )
    iris = scale(
        iris, face.shape("iris_light", 0.85, 1.25) * (1.25 - 0.6 * cover(0.085 - radius, 0.06))
    )
    colour = mix_colours(colour, iris, inside * cover(radius - 0.115, f.soft))
    colour = mix_colours(colour, rgb(0.03, 0.02, 0.02), inside * cover(radius - 0.05, f.soft))
    glint = blob(gx + 0.04 - 0.05 * f.light[0], gy + 0.045, 0.05, 0.05)
    colour = mix_colours(colour, rgb(1.0, 1.0, 1.0), 0.9 * glint)

    lash = 0.022 + 0.012 * (1 - male) + 0.024 * makeup
    reach = cover(jnp.abs(x - 0.03 * makeup) - half - 0.02 - 0.04 * makeup, 0.05)
    ink = scale(rgb(0.11, 0.07, 0.06), 1.0 - 0.5 * makeup)
    colour = mix_colours(
        colour, ink, cover(jnp.abs(upper) - lash, f.soft) * reach * (0.75 + 0.2 * makeup)
    )
    colour = mix_colours(
        colour,
        ink,
        cover(jnp.abs(lower) - 0.012 * (1 + makeup), f.soft) * reach * (0.35 + 0.4 * makeup),
    )
    return colour


def _brows(f: Frame, colour: Rgb) -> Rgb:
    face, male = f.face, f.face.has("Male")
    arched, bushy = face.has("Arched_Eyebrows"), face.has("Bushy_Eyebrows")
    x = jnp.abs(f.fx) - 0.5
    t = (x + 0.02) / (0.36 + 0.03 * face.shape("brow_length"))
    base = -0.32 - 0.03 * face.shape("brow_height") + 0.045 * male - 0.05 * arched
    curve = base + 0.05 * t * t - 0.045 * face.shape("brow_tilt") * t
    curve = curve + arched * (0.17 * jnp.square(t - 0.15) - 0.12)
    thick = (0.040 + 0.012 * male) * (1.0 + 0.95 * bushy) * (1.0 - 0.45 * jnp.maximum(t, 0.0))
    hairs = 1.0 + 0.13 * wave(7.0 * x - 4.0 * f.fy) * (0.5 + bushy)
    mask = cover(jnp.abs(f.fy - curve) - thick * hairs, 1.2 * f.soft) * cover(
        jnp.abs(t) - 1.0, 0.15
    )
    dark = mix_colours(scale(f.hair, 0.55), rgb(0.10, 0.07, 0.06), 0.25 + 0.35 * bushy)
    return mix_colours(colour, dark, mask * (0.72 + 0.23 * bushy))


class _Nose(NamedTuple):
    x: Array
    tip: Array
    width: Array


def _nose(f: Frame) -> _Nose:
    face = f.face
    big, pointy = face.has("Big_Nose"), face.has("Pointy_Nose")
    width = face.shape("nose_width", 0.19, 0.225) * (1.0 + 0.42 * big - 0.26 * pointy)
    tip = 0.62 + 0.035 * face.shape("nose_length") + 0.05 * big + 0.03 * pointy
    return _Nose(f.fx - 0.05 * face.posed("yaw") * blob(f.fx, f.fy - 0.6, 0.8, 0.7), tip, width)


def _nose_details(f: Frame, colour: Rgb) -> Rgb:
    face, nose = f.face, _nose(f)
    ax, y = jnp.abs(nose.x), f.fy - nose.tip
    pointy = face.has("Pointy_Nose")
    shine = blob(nose.x + 0.05 * f.light[0], y + 0.01, 0.09, 0.08 - 0.02 * pointy) * (
        0.20 + 0.15 * pointy
    )
    ridge = blob(nose.x + 0.03, f.fy - 0.32, 0.05, 0.34) * (0.10 + 0.14 * pointy)
    colour = mix_colours(colour, rgb(1.0, 0.96, 0.92), shine + ridge)
    wing = ellipse(ax - 0.78 * nose.width, y - 0.03, 0.42 * nose.width, 0.095)
    edge = cover(jnp.abs(wing) - 0.016, f.soft) * smoothstep(0.55, 0.9, ax / nose.width)
    hole = cover(ellipse(ax - 0.48 * nose.width, y - 0.095, 0.30 * nose.width, 0.032), f.soft)
    under = blob(nose.x, y - 0.15 + 0.05 * pointy, nose.width * (1.15 - 0.4 * pointy), 0.10)
    point = pointy * cover(
        jnp.maximum(ax - 0.10 + 0.9 * jnp.maximum(y - 0.05, 0.0), jnp.abs(y - 0.10) - 0.05), f.soft
    )
    side = blob(ax - 0.16 - 0.2 * jnp.maximum(f.fy - 0.1, 0.0), f.fy - 0.15, 0.10, 0.36) * (
        0.14 + 0.08 * pointy
    )
    return scale(
        colour,
        (1.0 - 0.30 * edge)
        * (1.0 - 0.55 * hole)
        * (1.0 - 0.28 * under - 0.3 * point)
        * (1.0 - side),
    )


def _mouth(f: Frame, colour: Rgb) -> Rgb:
    face, male = f.face, f.face.has("Male")
    smile, opened = face.has("Smiling"), face.has("Mouth_Slightly_Open")
    big, lipstick = face.has("Big_Lips"), face.has("Wearing_Lipstick")
    strength = smile * face.posed("smile_strength", 0.8, 1.15)
    half = (0.35 + 0.025 * face.shape("mouth_width")) * (1.0 + 0.24 * strength)
    x, y = f.fx, f.fy - 1.06 - 0.03 * face.shape("mouth_height") + 0.02 * smile
    q = jnp.square(x / half)
    arc = jnp.maximum(0.0, 1.0 - q)
    y = y + strength * (0.17 * jnp.minimum(q, 1.3) - 0.07) + 0.02 * (1 - smile) * q
    gap = opened * face.posed("mouth_gap", 0.085, 0.13) * (1.0 + 0.35 * smile)
    fullness = (
        face.shape("lip_fullness", 0.85, 1.1)
        * (0.85 + 1.25 * big)
        * (1.0 - 0.12 * male)
        * (1 - 0.2 * smile)
    )
    bow = 1.0 - 0.28 * blob(x, y * 0.0, 0.13, 1.0)
    top = -0.5 * gap * arc - 0.085 * fullness * jnp.sqrt(arc) * bow
    bottom = 0.5 * gap * arc + 0.115 * fullness * jnp.sqrt(arc)
    lips = cover(jnp.maximum(top - y, y - bottom), f.soft) * cover(q - 1.0, 0.1)
    natural = mix_colours(f.skin, rgb(0.62, 0.22, 0.22), 0.60 - 0.12 * male)
    red = choose(
        face.person.classes[3],
        (0.33, 0.67),
        (rgb(0.78, 0.06, 0.13), rgb(0.72, 0.12, 0.30), rgb(0.85, 0.20, 0.24)),
    )
    tint = mix_colours(natural, red, lipstick * 0.92)
    tint = scale(tint, jnp.where(y < 0.0, 0.84, 1.04))
    gloss = blob(x + 0.06, y - 0.5 * gap - 0.055 * fullness, 0.16, 0.04) * (0.16 + 0.24 * lipstick)
    tint = mix_colours(tint, rgb(1.0, 0.95, 0.93), gloss)
    colour = mix_colours(colour, tint, lips)
    hole = jnp.maximum(jnp.abs(y) - 0.5 * gap * arc, 0.02 - gap)
    between = cover(q - 1.02, 0.1)
    line = cover(jnp.abs(y) - 0.016, f.soft) * between
    colour = mix_colours(colour, rgb(0.26, 0.08, 0.07), line * 0.75)
    inside = cover(hole, f.soft) * between * opened
    colour = mix_colours(colour, rgb(0.22, 0.05, 0.06), inside)
    teeth = (
        cover(jnp.maximum(y - 0.5 * gap * arc + 0.045 - 0.04 * smile, hole + 0.006), f.soft)
        * inside
    )
    gaps = 1.0 - 0.10 * jnp.maximum(0.0, wave(9.0 * x) - 0.6)
    colour = mix_colours(colour, scale(rgb(0.96, 0.95, 0.91), gaps * (1.0 - 0.3 * q)), teeth * 0.95)
    corners = blob(jnp.abs(x) - half, y, 0.09, 0.08) * (0.20 + 0.15 * smile)
    under = blob(x, y - 0.23 - 0.5 * gap, 0.26, 0.07) * (0.14 + 0.16 * big)
    return scale(colour, 1.0 - corners - under)


def _beard(f: Frame, colour: Rgb) -> Rgb:
    face = f.face
    full = face.full_beard.astype(jnp.float32)
    ax, x = jnp.abs(f.fx), f.fx
    y = f.fy - 1.06
    smile = 0.06 * face.has("Smiling")
    upper = jnp.maximum(jnp.abs(y + 0.19 + 0.02 * wave(x)) - 0.075 + 0.04 * ax, ax - 0.40 - smile)
    mustache = cover(upper - 0.12 * ax * ax, 0.09)
    chin = cover(ellipse(x, y - 0.40, 0.33, 0.24), 0.10)
    sides = cover(jnp.maximum(jnp.abs(ax - 0.43 - smile) - 0.06, jnp.abs(y - 0.08) - 0.28), 0.10)
    line = 0.78 - 0.95 * (ax - 0.55)
    jaw = cover(jnp.maximum(line - f.fy, 0.62 - 0.12 * ax - f.fy), 0.16)
    jaw = jaw * (1.0 - 0.95 * blob(x, y, 0.5, 0.22))
    burns = cover(jnp.maximum(0.80 - 0.10 * f.fy - ax, jnp.abs(f.fy - 0.25) - 0.52), 0.09)
    texture = 1.0 + 0.22 * f.grain + 0.2 * wave(6.0 * x + 1.5 * wave(1.5 * f.fy))
    whiskers = scale(mix_colours(f.hair, rgb(0.10, 0.08, 0.07), jnp.float32(0.25)), 0.8 * texture)
    stubble = mix_colours(scale(f.skin, 0.55), rgb(0.22, 0.24, 0.28), jnp.float32(0.5))
    shadow = jnp.maximum(jaw, mustache) * face.has("5_o_Clock_Shadow") * (0.55 + 0.10 * f.grain)
    colour = mix_colours(colour, stubble, jnp.clip(shadow, 0.0, 1.0))
    dense = jnp.maximum(
        jaw * full, mustache * jnp.maximum(face.has("Mustache"), face.has("Goatee") * 0.35)
    )
    dense = jnp.maximum(dense, jnp.maximum(chin, 0.8 * sides) * face.has("Goatee"))
    dense = jnp.maximum(dense, burns * face.has("Sideburns"))
    return mix_colours(colour, whiskers, 0.92 * dense)
