"""What is put together of one network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from facemix_jax.linearity import study
from facemix_jax.models import split
from facemix_jax.models.split import Head


class Same(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x


class Squares(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return jnp.square(x).sum((1, 2))


@pytest.mark.parametrize(("tile", "examples"), [((2, 3), 5), ((4, 2), 2)])
def test_additivity_is_that_of_pairs_of_examples_tile_by_tile(tile, examples):
    model = split(
        [("same", Same), ("squares", Squares)],
        functools.partial(Head, 1, 2),
        name="squares",
        cut=1,
        last_cut=1,
        image_size=(4, 6),
        tile=tile,
    )
    variables = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (examples, 4, 6, 3))
    x = model.pre(variables["pre"], images)
    found = study.examine(
        model, variables, x, rng_key=jax.random.key(2), group_size=examples, num_keys=1
    )
    half = examples // 2
    errors = []
    for place in range(model.spec.tiles):
        of_tile = np.asarray(x[place * examples : (place + 1) * examples], np.float64)
        for a, b in zip(of_tile[:half], of_tile[half : 2 * half], strict=True):
            together, apart = ((a + b) ** 2).sum((0, 1)), (a**2 + b**2).sum((0, 1))
            errors.append(np.linalg.norm(together - apart) / np.linalg.norm(apart))
    additivity = found["local"]["additivity"]
    assert additivity["mean"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert additivity["left_out"] == 0
    # Squares are no module of ``models.operations``.
    causes = found["causes"]
    assert causes["unknown"] is True
    assert causes["interaction"]["mean"] is causes["interaction_share"]["mean"] is None


def test_the_only_example_is_paired_with_itself():
    x = jnp.arange(3.0)[:, None]
    np.testing.assert_array_equal(study._pairs(x, 3)[:, 0], [0, 1, 2, 0, 1, 2])
