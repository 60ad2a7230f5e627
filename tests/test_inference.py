import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import defenses, inference, mixing
from facemix_jax._validate import UsageError
from facemix_jax.models import resnet18
from facemix_jax.models.split import Segment


@pytest.fixture(scope="module")
def part():
    model = resnet18(image_size=(40, 36), width=4, num_attributes=3)
    return model, model.init(jax.random.key(0))


IMAGES = jax.random.normal(jax.random.key(1), (16, 40, 36, 3))


def linear_twin(model):
    """The same model with a linear main, for which mixing is exact."""

    def apply(variables, z):
        return z.mean(axis=(1, 2)) @ jnp.ones((z.shape[-1], 32))

    return model._replace(main=Segment(model.main.init, apply, None))


def test_facemix_is_exact_for_a_linear_main(part):
    model, variables = part
    twin = linear_twin(model)
    plain = inference.infer(twin, defenses.none(), variables, jax.random.key(0), IMAGES)
    mixed = inference.infer(
        twin, defenses.facemix(group_size=8), variables, jax.random.key(0), IMAGES
    )
    np.testing.assert_allclose(mixed, plain, atol=2e-4)


def test_facemix_is_not_exact_for_an_untrained_network(part):
    model, variables = part
    plain = inference.infer(model, defenses.none(), variables, jax.random.key(0), IMAGES)
    mixed = inference.infer(
        model, defenses.facemix(group_size=8), variables, jax.random.key(0), IMAGES
    )
    assert np.abs(mixed - plain).max() > 0.01


def test_trace_keeps_what_crosses_the_wire(part):
    model, variables = part
    defense = defenses.facemix(group_size=4)
    trace = inference.trace(model, defense, variables, jax.random.key(0), IMAGES)
    np.testing.assert_array_equal(trace.sent, mixing.mix(trace.secret, trace.activations))
    np.testing.assert_array_equal(trace.responses, model.main(variables["main"], trace.sent))
    np.testing.assert_array_equal(trace.features, mixing.unmix(trace.secret, trace.responses))
    assert sorted(np.asarray(trace.secret.order)) == list(range(16))


def test_shuffling_changes_what_is_sent_but_not_the_result(part):
    model, variables = part
    outputs = [
        inference.trace(
            model,
            defenses.facemix(group_size=4, shuffle=shuffle),
            variables,
            jax.random.key(0),
            IMAGES,
        )
        for shuffle in (False, True)
    ]
    assert not np.allclose(outputs[0].sent, outputs[1].sent)
    np.testing.assert_allclose(outputs[0].logits, outputs[1].logits, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_any_number_of_images(part, count):
    model, variables = part
    logits = inference.infer(
        model, defenses.facemix(group_size=8), variables, jax.random.key(0), IMAGES[:count]
    )
    assert logits.shape == (count, 3, 2)


def test_clean_statistics_serve_clean_inference_only(part):
    _, variables = part
    main = {**variables["main"], "clean_stats": {"other": 1}}
    both = {**variables, "main": main}
    clean = inference.main_variables(both, defenses.none())
    mixed = inference.main_variables(both, defenses.facemix(group_size=8))
    assert clean["batch_stats"] == {"other": 1}
    assert mixed["batch_stats"] is main["batch_stats"]
    assert "clean_stats" not in clean
    assert "clean_stats" not in mixed


def test_wrong_image_size_is_named(part):
    model, variables = part
    with pytest.raises(UsageError, match=r"\(2, 8, 8, 3\).*40, 36, 3.*Resize"):
        inference.infer(
            model, defenses.none(), variables, jax.random.key(0), jnp.ones((2, 8, 8, 3))
        )


def test_images_that_are_not_normalised_are_named(part):
    model, variables = part
    images = np.zeros((2, 40, 36, 3), np.uint8)
    for call in (inference.infer, inference.trace):
        with pytest.raises(UsageError, match=r"images are uint8.*data\.normalize"):
            call(model, defenses.none(), variables, jax.random.key(0), images)


@pytest.mark.parametrize("size", [0, 1])
def test_group_of_one_hides_nothing_and_is_refused(size):
    with pytest.raises(UsageError, match="at least 2"):
        defenses.facemix(group_size=size)
