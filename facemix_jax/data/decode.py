"""From an encoded image to pixels, with every failure named."""

import io
from typing import Any

import numpy as np

from facemix_jax._types import HostArray, ImageSize
from facemix_jax._validate import DataError

MAX_BYTES = 64 * 2**20
"""Of one encoded image; official CelebA images have about 7 kB."""

MAX_PIXELS = 50_000_000
"""Of one decoded image: above this a file is taken for a decompression bomb."""

_ORIENTATION = 0x112
_TURNS = {
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"},
    **{6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}
"""What turns a picture upright, by the orientation that its camera wrote."""


def rgb(data: bytes, image_size: ImageSize, *, name: str) -> HostArray:
    """Decodes an 8-bit image to upright RGB and resizes it, antialiased, where its size differs.

    What is transparent becomes white. Bytes changed within a JPEG mostly decode, to other pixels.

    Args:
        data: the encoded file.
        image_size: height, width of the result.
        name: of the file, for errors.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        DataError: it cannot be decoded (cut short, not an image), is too large, or has more than
            8 bits a channel.
    """
    # Imported here, as ``import facemix_jax`` should not wait for it.
    from PIL import Image

    height, width = image_size
    picture = _picture(data, name)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def check(data: bytes, *, name: str) -> None:
    """Raises ``DataError`` where ``rgb`` would, at the image's own size."""
    _picture(data, name)


def _picture(data: bytes, name: str) -> Any:
    """An upright RGB picture of the image's own size."""
    from PIL import Image

    try:
        # Pillow would also take formats that start other programs, such as EPS.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name, f"{image.width} x {image.height} pixels")
            # Pillow reads a PNG of 16-bit colours as 8-bit; its header has the depth in byte 24.
            if image.mode[0] in "IF" or (image.format == "PNG" and data[24] > 8):
                raise DataError(
                    f"Image {name} has more than 8 bits a channel (mode {image.mode}). "
                    "Convert it to 8-bit RGB."
                )
            # ``load`` reads all of it: a truncated file fails here and not later.
            image.load()
            picture = _opaque(image)
            turn = _TURNS.get(_orientation(image))
            if turn is not None:
                picture = picture.transpose(Image.Transpose[turn])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError) as error:
        # Pillow reports damage in all of these, depending on the format.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is neither JPEG nor PNG" if unknown else error
        raise DataError(
            f"Image {name} ({len(data):,} bytes) cannot be decoded: {reason}. "
            "It is truncated, damaged or not an image; fetch it again."
        ) from error
    return picture


def _opaque(image: Any) -> Any:
    """RGB on white: below what is transparent, files keep any colours, which nobody sees."""
    from PIL import Image

    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getextrema()[3][0] < 255:
            white = Image.new("RGBA", layer.size, "white")
            return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Any) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's are of many kinds; with odd metadata a picture stays as it lies.
        return None


def check_bytes(size: int, *, name: str) -> None:
    """Raises ``DataError`` where a file is too large for one image, before it is read."""
    if size > MAX_BYTES:
        raise _too_large(name, f"{size:,} bytes unpacked")


def _too_large(name: str, what: str) -> DataError:
    return DataError(
        f"Image {name} is too large ({what}); at most {MAX_PIXELS:,} pixels and "
        f"{MAX_BYTES:,} bytes are read, against decompression bombs. Shrink or remove it."
    )
