"""Slalom: the fixed-point network bit for bit, uniform numbers on the wire, tampering noticed."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import stats

from facemix_jax import costs, costs_paper, slalom
from facemix_jax._validate import DataError, UsageError
from facemix_jax.models import resnet18, vgg16
from facemix_jax.slalom import protocol
from facemix_jax.slalom.field import LARGEST_PRIME, PRIME, column_norm

NETWORKS = {"resnet18": resnet18, "vgg16": vgg16}
IMAGES = np.random.default_rng(0).standard_normal((3, 40, 36, 3)).astype(np.float32)


@functools.cache
def network(name, prime=PRIME):
    model = NETWORKS[name](image_size=(40, 36), width=4, num_attributes=3)
    variables = model.init(jax.random.key(0))
    return slalom.quantize(model, variables, IMAGES, prime=prime)


def request(part, images=IMAGES, cloud=None, seed=1, **options):
    """Logits, traffic, and what the cloud was sent."""
    seen = []
    honest = slalom.honest_cloud(part)

    def listening(index, elements):
        seen.append(elements)
        return (cloud or honest)(index, elements)

    blinding = slalom.precompute(
        part, len(images), random_bytes=np.random.default_rng(seed).bytes, **options
    )
    return *slalom.infer(part, images, listening, blinding), seen


# What is computed.


@pytest.mark.parametrize("prime", [PRIME, LARGEST_PRIME])
@pytest.mark.parametrize("name", NETWORKS)
def test_blinded_inference_is_the_fixed_point_network_bit_for_bit(name, prime):
    part = network(name, prime)
    logits, _, _ = request(part)
    np.testing.assert_array_equal(logits, slalom.run_plain(part, IMAGES))


@pytest.mark.parametrize("name", NETWORKS)
def test_fixed_point_is_close_to_floating_point(name):
    """Within a quarter of the logits' own deviation; four levels of activations are not."""
    part = network(name)
    model, variables = part.model, part.variables
    features = model.main(variables["main"], model.pre(variables["pre"], IMAGES))
    exact = np.asarray(model.post(variables["post"], features))
    coarse = slalom.quantize(model, variables, IMAGES, activation_max=4)

    def error(found):
        return np.abs(slalom.run_plain(found, IMAGES) - exact).max() / exact.std()

    assert error(part) < 0.25 < error(coarse)


@pytest.mark.parametrize("prime", [PRIME, LARGEST_PRIME])
def test_no_activations_make_a_result_wrap(prime):
    part = network("vgg16", prime)
    for layer in part.layers:
        assert column_norm(layer.weights) * part.activation_max <= (prime - 1) // 2
    tight = max(column_norm(layer.weights) for layer in part.layers) * part.activation_max
    assert (tight > 0.9 * (prime // 2)) == (prime == PRIME), "the smaller prime binds"


def test_what_does_not_fit_is_refused():
    part = network("resnet18")
    with pytest.raises(UsageError, match="too small"):
        slalom.quantize(part.model, part.variables, IMAGES, prime=251)
    with pytest.raises(UsageError, match="challenge_set"):
        slalom.precompute(part, 1, challenge_set=PRIME + 1)
    tiled = resnet18(image_size=(40, 36), width=4, num_attributes=3, tile=(5, 5))
    with pytest.raises(UsageError, match="4 tiles"):
        slalom.quantize(tiled, part.variables, IMAGES)
    for images in (IMAGES[:0], IMAGES[:, 1:]):
        with pytest.raises(UsageError, match="images have shape"):
            slalom.quantize(part.model, part.variables, images)
    pixels = np.zeros(IMAGES.shape, np.uint8)
    for call in (
        lambda: slalom.quantize(part.model, part.variables, pixels),
        lambda: slalom.infer(
            part, pixels, slalom.honest_cloud(part), slalom.Blinding([], [], [], "")
        ),
    ):
        with pytest.raises(UsageError, match=r"images are uint8.*normalize"):
            call()


def test_what_is_not_finite_is_refused_and_leaves_the_blinding_unused():
    part = network("resnet18")
    images = np.where(np.arange(36)[:, None] == 3, np.nan, IMAGES)
    blinding = slalom.precompute(part, len(images))
    for call in (
        lambda: slalom.quantize(part.model, part.variables, images),
        lambda: slalom.infer(part, images, slalom.honest_cloud(part), blinding),
        # Of the head alone, and of all that comes before the second layer.
        *(
            lambda name=name, value=value: slalom.quantize(
                part.model,
                {**part.variables, name: jax.tree.map(lambda a: a * value, part.variables[name])},
                IMAGES,
            )
            for name, value in (("post", np.inf), ("pre", np.nan))
        ),
        lambda: part.encode(0, np.full((1, 40, 36, 3), np.nan)),
    ):
        with pytest.raises(DataError, match="NaN or infinities"):
            call()
    assert not blinding.used


def test_one_pad_never_covers_several_rows():
    part = network("resnet18")
    asked, blinding = [], slalom.precompute(part, 3)
    blinding.pads[1] = blinding.pads[1][:1]
    with pytest.raises(UsageError, match="Layer 1 reads"):
        slalom.infer(
            part, IMAGES, lambda i, x: asked.append(i) or slalom.honest_cloud(part)(i, x), blinding
        )
    assert asked == [0]


def test_a_blinding_of_another_network_is_refused_and_accuses_no_cloud():
    part = network("resnet18")
    layers = list(part.layers)
    layers[3] = dataclasses.replace(layers[3], weights=layers[3].weights + 1)
    for other in (
        dataclasses.replace(part, layers=tuple(layers)),
        network("resnet18", LARGEST_PRIME),
        network("vgg16"),
    ):
        asked, blinding = [], slalom.precompute(other, 3)
        with pytest.raises(UsageError, match="blinding is for another network"):
            slalom.infer(part, IMAGES, lambda i, x, asked=asked: asked.append(i), blinding)
        assert not asked
        assert not blinding.used
    again = slalom.quantize(part.model, part.variables, IMAGES)
    slalom.infer(part, IMAGES, slalom.honest_cloud(part), slalom.precompute(again, 3))


# What the cloud sees.


def test_bytes_are_those_of_the_accounting():
    for name in NETWORKS:
        part = network(name)
        _, traffic, seen = request(part)
        cost = costs.model_cost(part.model, group_size=1)
        layers = (*cost.pre.layers, *cost.main.layers, *cost.post.layers)
        up, down = (
            4 * len(IMAGES) * sum(getattr(layer, size) for layer in layers)
            for size in ("input_size", "output_size")
        )
        assert traffic == protocol.Traffic(up, down, len(layers))
        assert [elements.dtype for elements in seen] == [np.dtype("<u4")] * len(layers)


@pytest.mark.slow
def test_vgg16_at_full_size_is_the_papers_row():
    """86.486 MiB and 16 rounds, counted where they cross; bit for bit at this size, too.

    Random weights: 18% off with the original's prime, 3% with the larger one.
    """
    model = vgg16(num_attributes=1, num_classes=1000)
    images = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0))
    part = slalom.quantize(model, variables, images)
    logits, traffic, _ = request(part, images)
    np.testing.assert_array_equal(logits, slalom.run_plain(part, images))
    (row,) = (row.figures for row in costs_paper.table1() if "Slalom" in row.name)
    assert traffic.up_bytes == row["up_bytes"].derived
    assert traffic.down_bytes == row["down_bytes"].derived
    assert traffic.rounds == row["rounds"].derived == 16
    assert round((traffic.up_bytes + traffic.down_bytes) / 2**20, 3) == 86.486
    features = model.main(variables["main"], model.pre(variables["pre"], images))
    exact = np.asarray(model.post(variables["post"], features))
    finer = slalom.quantize(model, variables, images, prime=LARGEST_PRIME)
    for found, off in ((logits, 0.18), (slalom.run_plain(finer, images), 0.03)):
        error = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
        assert error == pytest.approx(off, abs=0.005)


def uniformity(elements, prime=PRIME):
    """p value of a chi-squared test over 256 cells."""
    cells = np.concatenate([e.ravel() for e in elements]).astype(np.int64) * 256 // prime
    return stats.chisquare(np.bincount(cells, minlength=256)).pvalue


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_sent_is_uniform_and_without_blinding_is_not(name):
    """Of a fixed seed; a right sampler would fail one seed in a thousand."""
    part = network(name)
    _, _, seen = request(part)
    assert uniformity(seen) > 1e-3
    for layer in (0, 1, -1):
        assert uniformity([seen[layer]]) > 1e-3, layer
    blinding = slalom.precompute(part, 3, random_bytes=np.random.default_rng(1).bytes)
    for index, pad in enumerate(blinding.pads):
        pad[:] = 0
        blinding.unblinding[index][:] = 0
    bare = []
    honest = slalom.honest_cloud(part)
    slalom.infer(part, IMAGES, lambda i, x: bare.append(x) or honest(i, x), blinding)
    assert uniformity(bare) < 1e-12


def test_equal_images_are_never_sent_alike():
    part = network("resnet18")
    _, _, seen = request(part, np.repeat(IMAGES[:1], 2, axis=0))
    _, _, again = request(part, np.repeat(IMAGES[:1], 2, axis=0), seed=2)
    for elements, others in zip(seen, again, strict=True):
        # Equal by chance: one in sixteen million.
        assert (elements[0] == elements[1]).mean() < 0.01
        assert (elements == others).mean() < 0.01


def test_pads_come_from_the_operating_system_and_serve_once():
    part = network("resnet18")
    one, other = (slalom.precompute(part, 1) for _ in range(2))
    assert (one.pads[0] != other.pads[0]).mean() > 0.99
    slalom.infer(part, IMAGES[:1], slalom.honest_cloud(part), one)
    with pytest.raises(UsageError, match="used already"):
        slalom.infer(part, IMAGES[:1], slalom.honest_cloud(part), one)
    with pytest.raises(UsageError, match="not of 3"):
        slalom.infer(part, IMAGES, slalom.honest_cloud(part), other)


# Tampering.


def escapes(part, challenge_set, repetitions, trials):
    """How many of ``trials`` answers with one wrong element pass, over all layers in turn."""
    rng = np.random.default_rng(7)
    passed = 0
    honest = slalom.honest_cloud(part)
    _, _, seen = request(part, IMAGES[:1])
    answers = [honest(index, elements).astype(np.int64) for index, elements in enumerate(seen)]
    for trial in range(trials):
        # The last layers, which are small: the test is the same one, and quick.
        index = len(part.layers) - 1 - trial % 2
        test = protocol.challenge(
            part.layers[index].weights, part.prime, challenge_set, repetitions, rng.bytes
        )
        wrong = answers[index].copy()
        place = rng.integers(wrong.size)
        wrong.flat[place] = (wrong.flat[place] + rng.integers(1, part.prime)) % part.prime
        sent = seen[index].astype(np.int64)
        passed += protocol.passes(part, index, sent, wrong, test)
        if trial < 30:
            assert protocol.passes(part, index, sent, answers[index], test), "no false alarms"
    return passed


@pytest.mark.parametrize("name", NETWORKS)
def test_ten_thousand_tampered_answers_are_caught(name):
    """Expected to pass: 1e4 * 2**-40 in 1e4; more than none has probability 1e-8."""
    assert escapes(network(name), 2**20, 2, 5_000) == 0


@pytest.mark.parametrize(("challenge_set", "repetitions"), [(16, 1), (4, 2), (2, 1)])
def test_answers_pass_at_the_predicted_rate(challenge_set, repetitions):
    """One wrong element passes exactly where its challenge is 0, with ``|S| ** -repetitions``.

    A two-sided binomial test at 1e-3, of a fixed seed; twice and half the rate are refused.
    """
    trials, rate = 2_000, challenge_set**-repetitions
    passed = escapes(network("resnet18"), challenge_set, repetitions, trials)
    assert stats.binomtest(passed, trials, rate).pvalue > 1e-3
    for wrong in (rate / 2, min(2 * rate, 0.99)):
        assert stats.binomtest(passed, trials, wrong).pvalue < 1e-3


def test_a_cloud_that_cheats_anywhere_is_refused():
    part = network("resnet18")
    honest = slalom.honest_cloud(part)

    def lazy(at):
        def cloud(index, elements):
            answer = honest(index, elements)
            if index == at:
                answer.flat[-1] = (answer.flat[-1] + 1) % PRIME
            return answer

        return cloud

    for at in (0, 7, len(part.layers) - 1):
        with pytest.raises(slalom.TamperedError, match=f"layer {at} of"):
            request(part, cloud=lazy(at))
    for change in (
        lambda a: a[:-1],
        lambda a: a.astype(np.float32),
        lambda a: a + np.uint32(PRIME),
        lambda a: a.tolist(),
        lambda a: None,
    ):
        with pytest.raises(slalom.TamperedError, match="layer 0 of"):
            request(part, cloud=lambda i, x, change=change: change(honest(i, x)))


def test_a_cloud_with_other_weights_is_refused():
    part = network("resnet18")
    layers = list(part.layers)
    layers[3] = dataclasses.replace(layers[3], weights=layers[3].weights + 1)
    other = dataclasses.replace(part, layers=tuple(layers))
    with pytest.raises(slalom.TamperedError, match="layer 3 of"):
        request(part, cloud=slalom.honest_cloud(other))
