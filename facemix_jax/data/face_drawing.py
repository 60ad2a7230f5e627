"""Draws a ``Face``: layers of soft shapes from back to front, each lit from the same side."""

import jax
import jax.numpy as jnp

from facemix_jax._types import Array, ImageSize
from facemix_jax.data.face_frame import Frame, head_width, make_frame
from facemix_jax.data.face_head import head
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
    smoothstep,
    wave,
    when,
)


def draw(face: Face, image_size: ImageSize, texture: Array) -> Array:
    """Paints one picture.

    Args:
        face: what to draw.
        image_size: height, width.
        texture: noise with unit standard deviation, at least 128 pixels larger each way.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    frame = make_frame(face, image_size, texture)
    picture = when(frame.always, lambda f, _: _background(f), frame, (frame.grain,) * 3)
    # One condition per layer: what is not worn costs nothing, and XLA keeps each layer's pixels;
    # fused into one expression, layers would be drawn anew for every use of their pixels.
    for layer, needed in (
        (_hair_behind, ~face.is_("Bald")),
        (_body, frame.always),
        (_ears, frame.always),
        (head, frame.always),
        (_hair_in_front, frame.always),
        (_jewels, face.is_("Wearing_Earrings")),
        (_glasses, face.is_("Eyeglasses")),
        (_hat, face.is_("Wearing_Hat")),
    ):
        picture = when(needed, layer, frame, picture)
    image = jnp.stack(when(face.is_("Blurry"), _blur, frame, picture))
    warmth = 0.05 * face.posed("light_warmth")
    tint = jnp.stack([1.0 + warmth, jnp.float32(1.0), 1.0 - warmth])[:, None, None]
    image = image * tint * face.posed("exposure", 0.88, 1.08) + 0.006 * frame.grain[None]
    return jnp.round(jnp.clip(image, 0.0, 1.0) * 255.0).astype(jnp.uint8).transpose(1, 2, 0)


def _background(f: Frame) -> Rgb:
    height, width = f.px.shape
    rows, columns = _upsampling(height), _upsampling(width)
    light = f.face.posed("backdrop_light", 0.12, 0.95)
    base = jnp.stack(hue(f.face.posed("backdrop_hue", 0.0, 1.0), 0.28, light))
    grey = f.face.backdrop.mean(axis=0, keepdims=True)
    colours = base[:, None, None] * (0.35 + 1.1 * grey + 0.25 * (f.face.backdrop - grey))
    planes = jnp.einsum("hi,cij,wj->chw", rows, colours, columns, precision="highest")
    picture = (planes[0], planes[1], planes[2])
    return scale(
        _scenery(f, picture), 1.0 - 0.25 * blob(f.px - 0.2 * f.light[0], f.py - 0.2, 2.4, 3.0)
    )


def _scenery(f: Frame, picture: Rgb) -> Rgb:
    """Something behind the sitter, out of focus: the edge of a wall, a picture, a lamp."""
    face = f.face
    wall = f.px - 2.2 * face.posed("wall_x") + 0.6 * face.posed("wall_tilt") * f.py
    picture = scale(picture, 1.0 + 0.55 * face.posed("wall_light") * cover(wall, 0.16))
    across = jnp.abs(f.px - 2.3 * face.posed("shelf_x")) - face.posed("shelf_width", 0.25, 0.9)
    along = jnp.abs(f.py + 0.4 - 2.0 * face.posed("shelf_y")) - face.posed("shelf_height", 0.3, 1.2)
    colour = hue(face.posed("shelf_hue", 0.0, 1.0), 0.4, face.posed("wall_tilt", 0.15, 0.85))
    picture = mix_colours(picture, colour, 0.75 * cover(jnp.maximum(across, along), 0.2))
    radius = face.posed("lamp_size", 0.12, 0.4)
    lamp = ellipse(
        f.px - 2.1 * face.posed("lamp_x"), f.py + 0.8 - 1.8 * face.posed("lamp_y"), radius, radius
    )
    glow = hue(face.posed("lamp_hue", 0.0, 1.0), 0.35, 0.95)
    return mix_colours(picture, glow, 0.6 * cover(lamp, 0.14))


def _upsampling(length: int) -> Array:
    """Smooth interpolation from 4 knots, ``[length, 4]``."""
    at = jnp.linspace(0.0, 3.0, length)[:, None] - jnp.arange(4.0)[None, :]
    weight = jnp.square(jnp.maximum(0.0, 1.0 - jnp.square(at / 1.6)))
    return weight / weight.sum(axis=1, keepdims=True)


def _strands(f: Frame, along: Array, across: Array) -> Array:
    """Hair's light and dark strands, about -1 to 1, wavy or straight as the attributes say."""
    wavy, straight = f.face.has("Wavy_Hair"), f.face.has("Straight_Hair")
    phase = f.face.shape("wave_phase", 0.0, 1.0)
    across = across + wavy * 0.07 * wave(1.3 * along + phase)
    start, rate = f.face.shape("strand_phase", 0.0, 1.0), f.face.shape("strand_scale", 2.6, 3.6)
    fine = 0.6 * wave(rate * across + start) + 0.4 * wave(2.7 * rate * across + 3.1 * start)
    bands = wavy * 0.8 * wave(1.3 * along + 1.6 * across + phase)
    return (0.35 + 0.95 * straight + 0.15 * wavy) * fine + bands + 0.18 * f.grain


def _hair_half_width(f: Frame, y: Array) -> Array:
    """Half the width of the whole hair at height ``y`` of the head."""
    face = f.face
    volume = (
        face.shape("hair_volume", 0.10, 0.26)
        + 0.10 * face.has("Wavy_Hair")
        - 0.07 * face.has("Straight_Hair")
        - 0.05 * face.has("Male")
    )
    tight = face.has("Male") * smoothstep(-0.9, 0.0, y)
    top = head_width(face) + volume * (1.0 - 0.8 * tight)
    flare = (0.10 + 0.18 * face.has("Wavy_Hair")) * jnp.clip(y, 0.0, 2.0)
    edge = (
        face.has("Wavy_Hair")
        * (0.08 - 0.03 * face.has("Male"))
        * wave(1.25 * y + face.shape("wave_phase", 0.0, 1.0))
    )
    height = 1.45 + 1.2 * volume
    crown = jnp.sqrt(jnp.maximum(0.0, 1.0 - jnp.square(jnp.minimum(y, 0.0) / height)))
    return jnp.where(y > -height, top * crown + (flare + edge) * crown, -1.0)


def _hair_length(face: Face) -> Array:
    long = face.shape("hair_length", 1.1, 3.2)
    short = 0.1 + 0.15 * face.shape("hair_length")
    return jnp.where(face.person.male, short, long)


def _hair_behind(f: Frame, picture: Rgb) -> Rgb:
    length = _hair_length(f.face)
    strands = _strands(f, f.y, jnp.abs(f.x) * 2.2)
    distance = jnp.maximum(jnp.abs(f.x) - _hair_half_width(f, f.y), 0.6 * (f.y - length))
    mask = cover(distance, 0.1) * (1 - f.face.has("Bald"))
    dark = 0.62 - 0.12 * smoothstep(0.3, 1.4, f.y)
    return mix_colours(picture, scale(f.hair, dark * (1.0 + 0.28 * strands)), mask)


def _hair_in_front(f: Frame, picture: Rgb) -> Rgb:
    face, male = f.face, f.face.has("Male")
    bangs, receding = face.has("Bangs"), face.has("Receding_Hairline")
    half = _hair_half_width(f, f.y)
    across = f.x / jnp.maximum(half, 0.35)
    strands = _strands(f, f.y, 2.0 * across)
    part = 0.45 * face.shape("parting")
    ax = jnp.abs(f.x)
    shifted = f.x - part * (1 - bangs)
    line = -0.84 - 0.06 * face.shape("forehead") - 0.06 * male + 0.02 * f.grain
    line = line - 0.12 * jnp.maximum(0.0, 1.0 - jnp.abs(shifted) / 0.35) * (1 - male)
    line = (
        line
        + jnp.minimum(0.5 * jnp.square(jnp.square(ax / 0.95)), 0.9)
        + 0.14 * jnp.square(shifted)
    )
    temples = blob(ax - 0.50, f.y * 0.0, 0.42, 1.0)
    line = line - receding * (0.16 + 0.34 * temples)
    fringe = -0.50 + 0.06 * wave(1.7 * f.x + face.shape("strand_phase")) + 0.25 * jnp.square(f.x)
    line = line + bangs * (fringe - line)
    burn = jnp.where(male > 0, 0.15, _hair_length(face))
    inner = (
        0.80
        + 0.07 * male
        + 0.06 * jnp.square(f.y - 0.6)
        + 0.04 * wave(0.8 * f.y + face.shape("wave_phase")) * face.has("Wavy_Hair")
    )
    drape = jnp.maximum(inner - ax, f.y - burn)
    opening = jnp.minimum(jnp.maximum(f.y - line, f.y - 0.35), drape)
    distance = jnp.maximum(opening, ax - half)
    mask = cover(distance, 1.6 * f.soft) * (1 - face.has("Bald"))
    lit = (
        0.82
        + 0.38 * f.light[0] * across
        - 0.10 * across * across
        - 0.12 * smoothstep(0.2, 1.6, f.y)
    )
    band = blob(f.x * 0.0, f.y + 1.08 - 0.28 * f.x * f.x, 1.0, 0.20) * (0.26 + 0.20 * strands)
    shade = lit * (1.0 + 0.26 * strands) - 0.25 * blob(f.x * 0.0, opening + 0.0, 1.0, 0.09)
    colour = scale(f.hair, jnp.maximum(shade, 0.2))
    colour = mix_colours(
        colour,
        mix_colours(f.hair, rgb(1.0, 0.97, 0.92), jnp.float32(0.55)),
        jnp.clip(band, 0.0, 0.6),
    )
    picture = scale(
        picture, 1.0 - 0.30 * (1 - face.has("Bald")) * cover(distance - 0.05, 0.10) * (1 - mask)
    )
    scalp = blob(f.x + 0.3 * f.light[0], f.y + 1.0, 0.5, 0.28) * 0.35 * face.has("Bald")
    picture = mix_colours(picture, rgb(1.0, 0.97, 0.94), scalp)
    return mix_colours(picture, colour, mask)


def _body(f: Frame, picture: Rgb) -> Rgb:
    face, male = f.face, f.face.has("Male")
    x, y = f.px - 0.05 * face.posed("shift_x"), f.py
    neck = 0.50 + 0.10 * male + 0.16 * face.has("Double_Chin") + 0.04 * face.shape("neck_width")
    width = neck + 2.0 * jnp.square(jnp.maximum(0.0, y - 1.65))
    shade = (
        0.80 - 0.22 * smoothstep(2.3, 1.4, y) - 0.25 * jnp.square(x / 1.2) + 0.25 * f.light[0] * x
    )
    shade = shade + 0.05 * blob(jnp.abs(x) - 0.17, y - 2.15, 0.12, 0.6)
    picture = mix_colours(
        picture,
        scale(f.skin, jnp.clip(shade, 0.25, 1.1)),
        cover(jnp.abs(x) - width, 2 * f.soft) * cover(1.0 - y, 0.1),
    )
    chain = 2.02 + 0.42 * (1.0 - jnp.square(x / 0.62))
    beads = 0.75 + 0.35 * wave(7.0 * x)
    necklace = cover(jnp.abs(y - chain) - 0.045, f.soft) * cover(jnp.abs(x) - 0.66, 0.1)
    pendant = cover(ellipse(x, y - 2.52, 0.09, 0.10), f.soft)
    gold = mix_colours(
        rgb(0.95, 0.82, 0.40),
        rgb(0.97, 0.97, 1.0),
        (face.posed("accent_hue") > 0.2).astype(jnp.float32),
    )
    necklace = jnp.maximum(necklace, pendant) * face.has("Wearing_Necklace")

    cloth = hue(
        face.posed("cloth_hue", 0.0, 1.0),
        0.45 + 0.25 * face.posed("cloth_style"),
        face.posed("cloth_light", 0.12, 0.9),
    )
    tie = face.has("Wearing_Necktie")
    suit = mix_colours(cloth, scale(hue(face.posed("cloth_hue", 0.5, 0.75), 0.3, 0.3), 0.9), tie)
    neckline = jnp.where(male > 0, 2.12, 2.42) + 0.25 * face.posed("cloth_style") * (1 - male)
    opening = neckline - (0.55 - 0.1 * male) * jnp.abs(x) + 0.1 * jnp.square(x)
    drape = (
        0.85
        + 0.2 * f.light[0] * x
        - 0.10 * jnp.square(x)
        + 0.06 * wave(1.2 * x + 0.35 * y)
        + 0.03 * f.grain
    )
    shoulder = 1.85 + 0.22 * jnp.square(jnp.maximum(0.0, jnp.abs(x) - 0.4)) + 0.04 * jnp.abs(x)
    clothed = cover(jnp.maximum(opening - y, shoulder - y), 2 * f.soft)
    seam = blob(x * 0.0, y - opening - 0.06, 1.0, 0.05)
    picture = mix_colours(picture, scale(suit, drape * (1.0 - 0.3 * seam)), clothed)
    picture = mix_colours(picture, scale(gold, beads), necklace)

    shirt = cover(
        jnp.maximum(jnp.abs(x) - 0.62 + 0.75 * jnp.maximum(0.0, y - 2.0), 1.98 - y), f.soft
    )
    fold = 1.0 - 0.25 * cover(jnp.abs(jnp.abs(x) - 0.30 + 0.3 * (y - 2.0)) - 0.02, f.soft)
    picture = mix_colours(picture, scale(rgb(0.93, 0.94, 0.97), drape * fold), shirt * tie)
    knot = jnp.abs(x) - jnp.where(y < 2.35, 0.16 - 0.22 * (y - 2.1), 0.10 + 0.16 * (y - 2.35))
    stripes = 0.85 + 0.25 * wave(3.0 * (x + y))
    silk = hue(face.posed("accent_hue", 0.0, 1.0), 0.75, 0.62)
    picture = mix_colours(
        picture, scale(silk, stripes), cover(jnp.maximum(knot, 2.06 - y), f.soft) * tie
    )
    return picture


def _ears(f: Frame, picture: Rgb) -> Rgb:
    size = f.face.shape("ear_size", 0.9, 1.12)
    ex = jnp.abs(f.x) - (head_width(f.face) + 0.02)
    ey = f.y - 0.18
    lit = 0.80 + 0.3 * f.light[0] * f.side
    inner = blob(ex - 0.03, ey + 0.02, 0.10, 0.22)
    mask = cover(ellipse(ex - 0.25 * ey * 0.3, ey, 0.15 * size, 0.33 * size), f.soft)
    colour = scale(
        mix_colours(f.skin, rgb(0.75, 0.35, 0.28), jnp.float32(0.2)), lit * (1.0 - 0.35 * inner)
    )
    return mix_colours(picture, colour, mask)


def _jewels(f: Frame, picture: Rgb) -> Rgb:
    face = f.face
    ax = jnp.abs(f.x)
    gold = mix_colours(
        rgb(0.95, 0.80, 0.35),
        rgb(0.92, 0.95, 1.0),
        (face.posed("accent_hue") > 0).astype(jnp.float32),
    )
    drop = cover(ellipse(ax - head_width(face) - 0.06, f.y - 0.74, 0.085, 0.15), f.soft)
    stud = cover(ellipse(ax - head_width(face) - 0.05, f.y - 0.54, 0.05, 0.05), f.soft)
    spark = 0.75 + 0.5 * blob(ax - head_width(face) - 0.04, f.y - 0.70, 0.06, 0.08)
    return mix_colours(
        picture, scale(gold, spark), jnp.maximum(drop, stud) * face.has("Wearing_Earrings")
    )


def _glasses(f: Frame, picture: Rgb) -> Rgb:
    face, worn = f.face, f.face.has("Eyeglasses")
    round_ = (face.person.classes[3] > 0.6).astype(jnp.float32)
    x, y = jnp.abs(f.fx) - 0.50, f.fy - 0.03
    box = jnp.maximum(jnp.abs(x) - 0.36, jnp.abs(y) - 0.24)
    corner = (
        jnp.sqrt(
            jnp.square(jnp.maximum(0.0, jnp.abs(x) - 0.24))
            + jnp.square(jnp.maximum(0.0, jnp.abs(y) - 0.12))
        )
        - 0.12
    )
    rim = jnp.where(round_ > 0, ellipse(x, y, 0.32, 0.29), jnp.maximum(box, corner))
    sun = (face.posed("glasses_tint") > 0.4).astype(jnp.float32)
    lens = cover(rim, f.soft) * worn
    dark = scale(rgb(0.13, 0.12, 0.13), 1.0 + 0.8 * (0.24 - y))
    picture = mix_colours(picture, dark, lens * (0.05 + 0.55 * sun))
    glare = blob(x + 0.10 + 0.6 * y, y + 0.08, 0.08, 0.16) * (0.25 + 0.1 * sun)
    picture = mix_colours(picture, rgb(1.0, 1.0, 1.0), glare * lens)
    metal = choose(
        face.person.classes[2],
        (0.4, 0.7),
        (rgb(0.06, 0.05, 0.05), rgb(0.35, 0.17, 0.08), rgb(0.30, 0.30, 0.33)),
    )
    frame = cover(jnp.abs(rim) - 0.032, f.soft)
    bridge = cover(
        jnp.maximum(jnp.abs(f.fy + 0.05 - 0.25 * f.fx * f.fx) - 0.028, jnp.abs(f.fx) - 0.17), f.soft
    )
    temple = cover(
        jnp.maximum(
            jnp.abs(f.fy + 0.06) - 0.03, jnp.maximum(0.85 - jnp.abs(f.fx), jnp.abs(f.x) - 1.0)
        ),
        f.soft,
    )
    return mix_colours(picture, metal, jnp.maximum(frame, jnp.maximum(bridge, temple)) * worn)


def _hat(f: Frame, picture: Rgb) -> Rgb:
    face, worn = f.face, f.face.has("Wearing_Hat")
    wide = (face.posed("hat_style") > 0.0).astype(jnp.float32)
    cloth = hue(
        face.posed("hat_hue", 0.0, 1.0), 0.55, 0.25 + 0.5 * jnp.abs(face.posed("hat_style"))
    )
    width = head_width(face) + 0.20
    rim_y = -0.72 + 0.10 * f.x * f.x
    crown = jnp.maximum(ellipse(f.x, f.y + 0.72, width, 1.15), f.y - rim_y)
    brim = jnp.where(
        wide > 0,
        ellipse(f.x, f.y + 0.70, 1.75, 0.20),
        jnp.maximum(jnp.abs(f.y - rim_y + 0.09) - 0.14, jnp.abs(f.x) - width - 0.02),
    )
    lit = (
        0.85
        + 0.35 * f.light[0] * f.x
        - 0.16 * f.x * f.x
        + 0.04 * f.grain
        + 0.07 * wave(2.5 * f.x / width) * (1 - wide)
    )
    shadow = blob(f.x, f.y + 0.45, 1.2, 0.30) * worn * 0.35
    picture = scale(picture, 1.0 - shadow)
    picture = mix_colours(picture, scale(cloth, lit), cover(crown, 1.5 * f.soft) * worn)
    band = cover(jnp.abs(f.y - rim_y + 0.17) - 0.08, f.soft) * cover(crown, f.soft) * wide
    picture = mix_colours(picture, scale(cloth, 0.35 * lit), band * worn)
    return mix_colours(
        picture, scale(cloth, lit * (0.72 + 0.18 * wide)), cover(brim, 1.5 * f.soft) * worn
    )


def _blur(f: Frame, picture: Rgb) -> Rgb:
    """A lens out of focus: box filters, applied twice each way."""
    image = jnp.stack(picture)
    radius = max(1, round(image.shape[1] / 60))
    window = 2 * radius + 1
    for axis in (1, 2):
        for _ in range(2):
            widths = [(0, 0)] * 3
            widths[axis] = (radius, radius)
            shape = [1, 1, 1]
            shape[axis] = window
            padded = jnp.pad(image, widths, mode="edge")
            image = (
                jax.lax.reduce_window(padded, 0.0, jax.lax.add, shape, (1, 1, 1), "valid") / window
            )
    return image[0], image[1], image[2]
