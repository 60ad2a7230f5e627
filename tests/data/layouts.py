"""Official layouts with random contents, written for tests."""

import io
import zipfile

import numpy as np
from PIL import Image

from facemix_jax.data import celeba


def noisy_jpeg(rng, size=(178, 218)):
    """A picture (width, height), smooth enough for JPEG."""
    out = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
    small.resize(size).save(out, "JPEG")
    return out.getvalue()


def write_celeba(path, attribute_names, partition, picture=None):
    """CelebA's official files: an image for each entry of ``partition``, two of each person.

    ``picture(i)`` gives the encoded images; by default they are noise.
    """
    path.mkdir()
    rng = np.random.default_rng(0)
    names = [f"{i:06d}.jpg" for i in range(1, len(partition) + 1)]
    count = len(attribute_names)
    rows = "".join(
        f"{name} {' '.join(f'{v:2d}' for v in rng.choice([-1, 1], count))}\n" for name in names
    )
    header = " ".join(attribute_names)
    (path / celeba.ATTRIBUTES).write_text(f"{len(names)}\n{header} \n{rows}")
    (path / celeba.IDENTITIES).write_text(
        "".join(f"{name} {100 + i // 2}\n" for i, name in enumerate(names))
    )
    (path / celeba.PARTITION).write_text(
        "".join(f"{name} {part}\n" for name, part in zip(names, partition, strict=True))
    )
    with zipfile.ZipFile(path / "img_align_celeba.zip", "w") as archive:
        for i, name in enumerate(names):
            data = noisy_jpeg(rng) if picture is None else picture(i)
            archive.writestr(f"img_align_celeba/{name}", data)
    return path
