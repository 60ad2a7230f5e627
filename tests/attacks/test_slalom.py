"""Attacks on what Slalom's cloud sees of the first layer."""

import jax
import numpy as np
import pytest
from attack_support import PatchworkSource
from scipy import stats

from facemix_jax import attacks, data, slalom
from facemix_jax._validate import UsageError
from facemix_jax.attacks.separation import GRADIENT_ICA
from facemix_jax.models import resnet18
from facemix_jax.slalom.field import LARGEST_PRIME, PRIME


def attacked(blinded):
    """Gradient ICA on what the first round sends of 16 images, four to a group."""
    source = PatchworkSource()
    model = resnet18(cut=0, image_size=source.image_size, width=4, num_attributes=3)
    variables = model.init(jax.random.key(0))
    images = data.normalize(source.images(np.arange(16)))
    defense = slalom.first_layer(slalom.quantize(model, variables, images), group_size=4)
    if not blinded:
        init = defense.init
        defense = defense._replace(init=lambda *args: 0 * init(*args))
    target = attacks.Target(model=model, defense=defense, variables=variables, source=source)
    recording = attacks.record(target, attacks.recorded_rows(target, 4), rng_key=jax.random.key(1))
    result = GRADIENT_ICA.run(target, recording, jax.random.key(2), attacks.AttackConfig())
    return result.figures[0], recording


def test_separation_finds_nothing_in_blinded_images():
    """64 x 56 x 3 independent numbers: chance correlations have deviation 0.01."""
    figure, recording = attacked(True)
    assert figure.value < 0.05
    assert figure.floor < 0.05
    assert figure.owner > 0.999
    # What attacks see is uniform, too: chi-squared over 64 cells, false alarm 1e-3, fixed seed.
    cells = np.asarray(recording.view.mixtures).astype(np.int64) * 64 // PRIME
    assert stats.chisquare(np.bincount(cells.ravel(), minlength=64)).pvalue > 1e-3


def test_the_same_attack_finds_images_that_are_not_blinded():
    figure, _ = attacked(False)
    assert figure.value > 0.3


def test_attacks_need_elements_that_float32_holds():
    model = resnet18(cut=0, image_size=(40, 36), width=4, num_attributes=3)
    images = np.ones((1, 40, 36, 3), np.float32)
    variables = model.init(jax.random.key(0))
    part = slalom.quantize(model, variables, images, prime=LARGEST_PRIME)
    with pytest.raises(UsageError, match="float32"):
        slalom.first_layer(part)
