"""Eight persons, patterns of coloured tiles in bright and dark pictures, and a small network."""

import functools

import jax.numpy as jnp
import numpy as np

from facemix_jax import models
from facemix_jax.models import resnet
from facemix_jax.models.split import Head


class Faces:
    name = "tiles"
    image_size = (40, 36)
    attribute_names = ("Bright",)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        people = rng.integers(0, 2, (8, 5, 4, 3)) * 100
        self.identities = np.arange(192, dtype=np.int32) % 8
        bright = rng.integers(0, 2, 192)
        self.attributes = bright[:, None].astype(np.int8)
        tiles = np.kron(people[self.identities], np.ones((1, 8, 9, 1), int))
        noise = rng.integers(0, 30, (192, *self.image_size, 3))
        self._images = (tiles + noise + 110 * bright[:, None, None, None]).astype(np.uint8)
        self.splits = {"train": np.arange(128), "test": np.arange(128, 192)}

    def __len__(self) -> int:
        return 192

    def images(self, indices):
        return self._images[indices]


def small_network():
    """The stem and one block of a ResNet, cut between the two."""
    units = [
        ("stem", functools.partial(resnet.Stem, 8, "batch", jnp.float32)),
        ("block", functools.partial(resnet.BasicBlock, 32, 2, "batch", jnp.float32)),
        ("pool", resnet.GlobalAveragePool),
    ]
    head = functools.partial(Head, 1, 2)
    return models.split(units, head, name="small", cut=1, last_cut=1, image_size=(40, 36))
