import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import models
from facemix_jax._validate import UsageError
from facemix_jax.models import ModelConfig, resnet18, vgg16


def tiny(**options):
    return resnet18(**{"image_size": (40, 36), "width": 4, "num_attributes": 3, **options})


IMAGES = jax.random.normal(jax.random.key(1), (4, 40, 36, 3))


def test_segments_without_units_take_numpy_arrays():
    pre = tiny(cut=0).pre
    assert isinstance(pre({}, np.asarray(IMAGES)), jax.Array)


@pytest.mark.slow
def test_weights_do_not_depend_on_the_cut():
    def leaves(cut):
        variables = tiny(cut=cut).init(jax.random.key(0))
        merged = {}
        for segment in variables.values():
            for collection, units in segment.items():
                merged.setdefault(collection, {}).update(units)
        return merged

    first = leaves(0)
    for cut in (1, 9):
        jax.tree.map(np.testing.assert_array_equal, first, leaves(cut))


def test_shapes_are_those_of_the_spec():
    model = tiny(cut=3)
    variables = model.init(jax.random.key(0))
    activations = model.pre(variables["pre"], IMAGES)
    responses = model.main(variables["main"], activations)
    assert activations.shape[1:] == model.spec.activation_shape == (10, 9, 4)
    assert responses.shape[1:] == model.spec.response_shape == (32,)
    assert model.post(variables["post"], responses).shape[1:] == model.spec.logits_shape == (3, 2)


def test_spec_at_the_papers_size():
    assert resnet18().spec.activation_shape == (55, 45, 64)
    assert vgg16(cut=3).spec.activation_shape == (112, 112, 64)
    assert vgg16().spec.response_shape == (4096,)


def test_kernels_have_the_variance_of_he_et_al():
    kernel = resnet18(image_size=(40, 36)).init(jax.random.key(0))["main"]["params"]["layer4_1"][
        "conv1"
    ]["kernel"]
    expected = np.sqrt(2 / (9 * 512))
    assert abs(float(kernel.std()) / expected - 1) < 0.01
    assert abs(float(kernel.mean())) < 0.01 * expected
    # No two kernels, and no two parts of one, repeat a draw.
    flat = np.asarray(kernel).ravel()
    assert not np.array_equal(flat[: 1 << 20], flat[1 << 20 : 2 << 20])


def test_training_statistics_change_and_inference_uses_them():
    model = tiny()
    variables = model.init(jax.random.key(0))
    activations, pre = model.pre.train(variables["pre"], IMAGES)
    before = variables["pre"]["batch_stats"]["stem"]["bn1"]["bn"]
    after = pre["batch_stats"]["stem"]["bn1"]["bn"]
    assert not np.allclose(before["mean"], after["mean"])
    assert pre["params"] is variables["pre"]["params"]
    assert not np.allclose(activations, model.pre(pre, IMAGES))


@pytest.mark.library_promotes
def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    model = tiny(dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    activations = model.pre(variables["pre"], IMAGES)
    assert activations.dtype == jnp.bfloat16
    exact = tiny().pre(variables["pre"], IMAGES)
    error = np.abs(np.asarray(activations, np.float32) - np.asarray(exact)).max()
    assert 0 < error < 0.1


def test_without_batchnorm_there_are_no_statistics():
    model = tiny(norm="none")
    variables = model.init(jax.random.key(0))
    assert all("batch_stats" not in segment for segment in variables.values())
    responses = model.main(variables["main"], model.pre(variables["pre"], IMAGES))
    assert np.isfinite(responses).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tiny(cut=10), ("10", "0 (the image itself)", "9", "layer4_1")),
        (lambda: vgg16(cut=19), ("19", "18", "pool5")),
        (lambda: ModelConfig(network="resnet"), ("resnet", "resnet18", "Did you mean")),
        (lambda: ModelConfig(width=0), ("width", "0")),
        (lambda: ModelConfig(width=10**11), ("width is 100000000000", "1 and 1024", "Choose")),
        (lambda: ModelConfig(compute_dtype="fp8"), ("fp8", "bfloat16")),
        (lambda: models.build(ModelConfig(), image_size=(20, 64)), ("20x64", "33")),
        (lambda: models.build(ModelConfig(), image_size=48), ("48", "height, width", "Give both")),
        (lambda: tiny(image_size=(8, 8)), ("8x8", "33")),
        (lambda: tiny(image_size=48), ("48", "height, width", "Give both")),
        (lambda: tiny(tile=5), ("tile is 5", "height, width")),
        (lambda: tiny(width=0), ("width", "0")),
        (lambda: tiny(stem="sign"), ("'sign'", "'signed'")),
        (lambda: vgg16(width=0), ("width", "0")),
        (lambda: vgg16(stem="signed"), ("'signed'", "'pool'")),
    ],
)
def test_errors_name_value_limit_and_remedy(call, words):
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_centre_makes_constants_exact_and_keeps_running_means():
    """The closed form: unmixing returns a constant c as A^T 1 c; centring takes c away."""
    from facemix_jax import mixing

    model = tiny(centre=True)
    variables = model.init(jax.random.key(0))
    activations, pre = model.pre.train(variables["pre"], IMAGES)
    np.testing.assert_allclose(activations.mean(axis=0), 0.0, atol=1e-5)
    kept = pre["batch_stats"]["pre_centre"]["mean"]
    assert kept.shape == model.spec.activation_shape
    uncentred = tiny().pre.train(variables["pre"], IMAGES)[0]
    np.testing.assert_allclose(kept, 0.1 * uncentred.mean(axis=0), atol=1e-5)

    key = mixing.sample_mix_key(jax.random.key(2), 1, 4)
    constant = jnp.broadcast_to(jnp.arange(1.0, 6.0), (4, 5))
    affine = IMAGES.reshape(4, -1)[:, :5] + constant
    unmixed = mixing.unmix(key, mixing.mix(key, affine - constant) + constant)
    expected = affine - constant + (key.inverse[0].sum(axis=1)[:, None] * constant)
    np.testing.assert_allclose(unmixed, expected, atol=1e-4)
    assert float(jnp.abs(unmixed - affine).max()) > 0.1
    centred = mixing.unmix(key, mixing.mix(key, affine - constant)) + constant
    np.testing.assert_allclose(centred, affine, atol=1e-5)


def test_the_same_network_is_the_same_object_until_it_is_registered_anew(monkeypatch):
    def built(**options):
        return models.build(ModelConfig(width=4, **options), image_size=(40, 36))

    first = built()
    assert built() is first
    assert built(cut=2) is not first
    monkeypatch.setitem(models.MODELS, "resnet18", lambda **options: vgg16(**options))
    assert built().spec.name == "vgg16"
