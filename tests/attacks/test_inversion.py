import dataclasses

import jax
import numpy as np
import pytest
from attack_support import make_recording, make_target, run

from facemix_jax import attacks, data, defenses
from facemix_jax._validate import UsageError
from facemix_jax.attacks import groups, inversion
from facemix_jax.attacks.decoder_network import decoder
from facemix_jax.attacks.groups import correlation

pytestmark = pytest.mark.library_promotes


def test_optimisation_finds_the_image():
    target, recording = make_target(), make_recording()
    found = inversion.invert_by_optimization(
        target.model, target.variables["pre"], recording.activations[:4], steps=100
    )
    truth = recording.images[:4] / 255.0
    assert found.shape == truth.shape
    assert found.min() >= 0
    assert found.max() <= 1
    error = groups.activations(target, 255 * found) - recording.activations[:4]
    assert np.linalg.norm(error) < 0.2 * np.linalg.norm(recording.activations[:4])
    # Six pixels for each activation: the image is not determined, but it shows.
    assert correlation(found, truth).mean() > correlation(found, np.roll(truth, 1, 0)).mean() + 0.3


def test_smoothness_is_asked_for():
    target, recording = make_target(), make_recording()
    rough, smooth = (
        inversion.invert_by_optimization(
            target.model,
            target.variables["pre"],
            recording.activations[:2],
            steps=40,
            total_variation=weight,
        )
        for weight in (0.0, 30.0)
    )
    variation = [np.abs(np.diff(x, axis=1)).mean() for x in (rough, smooth)]
    assert variation[1] < 0.5 * variation[0]


def test_a_decoder_learns_from_the_attackers_own_images():
    target, recording = make_target(), make_recording()
    made = inversion.train_decoder(target, steps=40, batch_size=16, rng_key=jax.random.key(0))
    assert np.mean(made.losses[-10:]) < 0.8 * np.mean(made.losses[:5])
    images, truth = made.invert(recording.activations), recording.images / 255.0
    assert images.shape == truth.shape
    assert images.dtype == np.float32
    assert correlation(images, truth).mean() > 0.5
    assert correlation(images, np.roll(truth, 1, 0)).mean() < 0.4


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 0.1, 0.1), (0.5, 0.6, 1.0)])
def test_the_decoder_learns_with_the_noise_that_separation_leaves(monkeypatch, noise, least, most):
    """In deviations of activations, whose root mean square is larger; without noise as before."""
    target, asked = make_target(), []
    monkeypatch.setattr(groups, "rehearses", lambda target: False)  # they compile for long

    def train(target, *, most_noise, **options):
        asked.append(most_noise)
        return inversion.Inverter(lambda z: np.zeros((len(z), 64, 56, 3), np.float32), ())

    monkeypatch.setattr(inversion, "train_decoder", train)
    if noise:
        noisy = defenses.with_noise(target.defense, noise)
        target = dataclasses.replace(target, defense=noisy)
    recording = attacks.record(target, target.source.splits["test"][:8], rng_key=jax.random.key(1))
    inversion.invert_recording(
        target, recording, rng_key=jax.random.key(0), config=attacks.AttackConfig()
    )
    assert least <= asked[0] <= most


def test_pixels_at_the_cut_need_no_decoder():
    target, recording = make_target(cut=0), make_recording(cut=0)
    made = inversion.train_decoder(target, steps=5, batch_size=8, rng_key=jax.random.key(0))
    assert made.losses == ()
    images = made.invert(data.normalize(recording.images))
    np.testing.assert_allclose(images, recording.images / 255.0, atol=1e-6)


@pytest.mark.parametrize(("activation", "image"), [((7, 5, 4), (25, 20)), ((1, 1, 8), (33, 40))])
def test_decoder_gives_images_of_any_size(activation, image):
    network = decoder(image, features=4, num_blocks=1)
    z = np.zeros((2, *activation), np.float32)
    out = network.apply(network.init(jax.random.key(0), z), z)
    assert out.shape == (2, *image, 3)


def test_attacker_comes_close_to_the_owner_at_the_image_itself():
    figures, recovered = run(inversion.INVERSION, cut=0)
    assert recovered.shape == (16, 64, 56, 3)
    for figure in figures.values():
        assert figure.floor < figure.value < figure.owner
    assert figures["PSNR of the images [dB]"].owner > 50
    assert figures["mean |correlation| of the images"].value > 0.9


@pytest.mark.slow
def test_without_a_defence_attacker_floor_and_owner_are_one():
    figures, _ = run(inversion.INVERSION, group_size=1)
    assert all(f.value == f.floor == f.owner for f in figures.values())


def test_activations_of_another_cut_are_an_error():
    target = make_target()
    with pytest.raises(UsageError, match="activations of the cut"):
        inversion.invert_by_optimization(
            target.model, target.variables["pre"], np.zeros((1, 3, 3, 3), np.float32)
        )
