"""A small CelebA folder in one shade per image, and what its damage must say."""

import io
import zipfile

import pytest
from layouts import write_celeba
from PIL import Image

from facemix_jax._validate import DataError
from facemix_jax.data import DataConfig, load_source

COUNT = 12
NAMES = [f"{i:06d}.jpg" for i in range(1, COUNT + 1)]


def jpeg(shade, size=(178, 218), mode="RGB", kind="JPEG"):
    colour = (shade, 255 - shade, 100) if mode == "RGB" else shade
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, kind)
    return out.getvalue()


def shade(i):
    return 10 + 15 * i


def write(place):
    names = ("Bald", "Male", "Young")
    partition = [i // 4 for i in range(COUNT)]
    return write_celeba(place, names, partition, lambda i: jpeg(shade(i)))


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


def rewrite_zip(folder, change):
    """Rebuilds the archive from ``{member: bytes}`` after ``change``."""
    path = folder / "img_align_celeba.zip"
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def load(folder, **options):
    options = {"image_size": (20, 16), **options}
    config = DataConfig(dataset="celeba", data_dir=str(folder), **options)
    return load_source(config)


def expect(folder, *words, **options):
    with pytest.raises(DataError) as caught:
        load(folder, **options)
    for word in words:
        assert word in str(caught.value)
    assert not list(folder.glob(".facemix_cache/*"))
