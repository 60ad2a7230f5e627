"""Faces by Pix2Pix: the objective, the score, and success where little is hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tile_faces import Faces, small_network

from facemix_jax import attacks, defenses, models
from facemix_jax.attacks import reconstruction

RNG_KEY = jax.random.key(0)


def run(defense, model, *, steps, batch_size=16):
    target = attacks.Target(
        model=model, defense=defense, variables=model.init(RNG_KEY), source=Faces()
    )
    rows = target.source.splits["test"][:32]
    recording = attacks.record(target, rows, rng_key=jax.random.key(1))
    effort = attacks.AttackConfig(steps=steps, batch_size=batch_size)
    result = reconstruction.PIX2PIX.run(target, recording, jax.random.key(2), effort)
    return result.figures[0], result.recovered, recording


@pytest.mark.slow
@pytest.mark.library_promotes
def test_the_attack_succeeds_where_groups_are_only_reordered(monkeypatch):
    """The negative control, and the check that images come back in the order of the truth."""
    monkeypatch.setattr(reconstruction, "_FEATURES", 24)
    weak = defenses.facemix(group_size=2, family="signed_permutation")
    figure, recovered, recording = run(weak, small_network(), steps=100)
    assert figure.floor + 0.1 < figure.value < 0
    assert figure.chance < figure.floor
    assert figure.floor + 0.2 < figure.owner < 0
    truth = recording.images / 255
    assert recovered.shape == truth.shape
    assert recovered.min() >= 0
    assert recovered.max() <= 1
    error = 4 * ((recovered - truth) ** 2).mean()  # of images in [-1, 1]
    assert -error == pytest.approx(figure.value, rel=1e-4)
    assert ((np.roll(recovered, 1, 0) - truth) ** 2).mean() > 2 * error / 4


NETWORKS = {
    "resnet18": models.resnet18(cut=9, image_size=(40, 36), num_attributes=1, width=4),
    "vgg16": models.vgg16(cut=0, image_size=(40, 36), num_attributes=1, width=4),
}


@pytest.mark.library_promotes
@pytest.mark.parametrize(
    ("network", "group_size"),
    [
        pytest.param("resnet18", 16, marks=pytest.mark.slow),
        pytest.param("resnet18", 1, marks=pytest.mark.slow),
        pytest.param("vgg16", 16, marks=pytest.mark.slow),
        pytest.param("vgg16", 1, marks=pytest.mark.slow),
    ],
)
def test_any_network_cut_and_group(network, group_size, monkeypatch):
    monkeypatch.setattr(reconstruction, "_FEATURES", 4)
    defense = defenses.facemix(group_size=group_size) if group_size > 1 else defenses.none()
    figure, recovered, recording = run(defense, NETWORKS[network], steps=1, batch_size=8)
    assert np.isfinite(figure.value)
    assert (figure.owner == figure.value) == (group_size == 1)
    assert recovered.shape == recording.images.shape


def test_chamfer_is_the_papers_loss_over_every_pair():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 4, 5, 6, 3)).astype(np.float32)
    distances = np.abs(x[:, :, None] - y[:, None]).mean((3, 4, 5))
    expected = (distances.min(2).mean() + distances.min(1).mean()) / 2
    got = reconstruction.chamfer(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(
        reconstruction.chamfer(jnp.asarray(x), jnp.asarray(y[:, ::-1])), expected, rtol=1e-5
    )
    single = reconstruction.chamfer(jnp.asarray(x[:, :1]), jnp.asarray(y[:, :1]))
    np.testing.assert_allclose(single, np.abs(x[:, 0] - y[:, 0]).mean(), rtol=1e-5)


def test_chamfers_gradient_is_that_of_its_value():
    """Choosing the nearest faces outside the gradient changes nothing."""
    rng = np.random.default_rng(0)
    x, y, direction = rng.standard_normal((3, 2, 3, 4, 4, 3)).astype(np.float32)
    gradient = jax.grad(reconstruction.chamfer, argnums=1)(jnp.asarray(x), jnp.asarray(y))
    step = 1e-3 * direction
    values = [
        float(reconstruction.chamfer(jnp.asarray(x), jnp.asarray(y + s))) for s in (step, -step)
    ]
    slope = (values[0] - values[1]) / 2e-3
    assert slope == pytest.approx(float((np.asarray(gradient) * direction).sum()), rel=2e-2)


def test_groups_are_stacked_on_channels():
    z = np.random.default_rng(0).standard_normal((6, 8, 9, 2)).astype(np.float32)
    stacked = np.asarray(reconstruction.condition(jnp.asarray(z), 3, (8, 9)))
    assert stacked.shape == (2, 8, 9, 6)
    for row in range(6):
        group, member = divmod(row, 3)
        np.testing.assert_allclose(
            stacked[group, ..., 2 * member : 2 * member + 2], z[row], atol=1e-6
        )
    back = reconstruction._unstack(jnp.asarray(stacked), 3).reshape(z.shape)
    np.testing.assert_allclose(back, z, atol=1e-6)
    assert reconstruction.condition(jnp.asarray(z), 3, (17, 20)).shape == (2, 17, 20, 6)
