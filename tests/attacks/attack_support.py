"""Pictures with sparse gradients as a source: what gradient ICA separates, in a moment."""

import functools

import jax
import numpy as np

from facemix_jax import attacks, defenses, models
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig


class PatchworkSource:
    """Overlapping rectangles of one colour; the first attribute is whether red prevails."""

    name = "patchwork"
    image_size = (64, 56)
    attribute_names = ("Red", "Even", "Coin")

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        images = np.full((160, *self.image_size, 3), 90, np.uint8)
        for image in images:
            for _ in range(8):
                top, left = rng.integers(0, 58), rng.integers(0, 50)
                bottom, right = top + rng.integers(4, 40), left + rng.integers(4, 36)
                image[top:bottom, left:right] = rng.integers(40, 256, 3)
        self._images = images
        means = images.mean((1, 2))
        coin = rng.integers(0, 2, 160)
        red = means[:, 0] > means[:, 2]
        self.attributes = np.stack([red, np.arange(160) % 2, coin], 1).astype(np.int8)
        # Ten images of each person: enough for attackers that recognise people.
        self.identities = np.arange(160, dtype=np.int32) % 16
        self.splits = {"train": np.arange(96), "test": np.arange(96, 160)}

    def __len__(self) -> int:
        return 160

    def images(self, indices):
        return self._images[indices]


@functools.cache
def make_target(group_size=4, cut=1):
    """An untrained network of width 8; groups of one have no defence."""
    source = PatchworkSource()
    model = models.resnet18(cut=cut, image_size=source.image_size, num_attributes=3, width=8)
    defense = defenses.facemix(group_size=group_size) if group_size > 1 else defenses.none()
    variables = model.init(jax.random.key(0))
    return attacks.Target(model=model, defense=defense, variables=variables, source=source)


@functools.cache
def make_tiled_target(tile=(8, 7), **options):
    """An untrained network of width 8 whose maps are cut into tiles."""
    source = PatchworkSource()
    model = models.build(
        ModelConfig(width=8, tile=tile), image_size=source.image_size, num_attributes=3
    )
    defense = defenses.build(DefenseConfig(**{"group_size": 4, **options}), tiles=model.spec.tiles)
    variables = model.init(jax.random.key(0))
    return attacks.Target(model=model, defense=defense, variables=variables, source=source)


@functools.cache
def make_recording(group_size=4, cut=1, shuffled=True):
    """Sixteen images of the attacked split."""
    target = make_target(group_size, cut)
    rows = attacks.recorded_rows(target, 16 // group_size)
    return attacks.record(target, rows, rng_key=jax.random.key(1), shuffled=shuffled)


def run(attack, group_size=4, cut=1, **config):
    """An attack's figures by name, and what it recovered."""
    target, recording = make_target(group_size, cut), make_recording(group_size, cut)
    assert attack.unsuitable(target) is None
    config = attacks.AttackConfig(**{"steps": 2, "batch_size": 16, **config})
    result = attack.run(target, recording, jax.random.key(2), config)
    return {figure.name: figure for figure in result.figures}, result.recovered
